"""LoRA adapters: small weights that are added to those of a model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.local_models.gguf import read_header
from openruntime_jupyter.schemas.values import ModelSource

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
"""Files of an adapter for mlx-lm, as its training writes them."""


def with_adapter(source: ModelSource, path: Path) -> ModelSource:
    """Return the model with the adapter at a resolved path. Raises `InvalidRequest` for a path without an adapter for its engine."""
    if source.engine == "llama.cpp":
        weights, wanted = _weights_of_file(path), "a GGUF file with an adapter"
    else:
        weights, wanted = _weights_in_folder(path), f"a folder with {CONFIG} and {WEIGHTS}"
    if weights is None:
        raise InvalidRequest.of("parameters.adapter", f"{path} is not an adapter for {source.name}: {source.engine} needs {wanted}")
    size = None if source.bytes is None else source.bytes + weights.st_size
    return replace(source, adapter=str(path), bytes=size, modified=max(source.modified or 0, weights.st_mtime_ns))


def _weights_of_file(path: Path) -> os.stat_result | None:
    try:
        return path.stat() if path.is_file() and read_header(path).get("general.type") == "adapter" else None
    except (NotAModel, OSError):
        return None


def _weights_in_folder(path: Path) -> os.stat_result | None:
    try:
        return (path / WEIGHTS).stat() if (path / CONFIG).is_file() else None
    except OSError:
        return None
