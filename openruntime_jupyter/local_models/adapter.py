"""LoRA adapters: small weights that are added to those of a model."""

from __future__ import annotations

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
        size, wanted = _gguf_size(path), "a GGUF file with an adapter"
    else:
        size, wanted = _folder_size(path), f"a folder with {CONFIG} and {WEIGHTS}"
    if size is None:
        raise InvalidRequest.of("parameters.adapter", f"{path} is not an adapter for {source.name}: {source.engine} needs {wanted}")
    return replace(source, adapter=str(path), bytes=None if source.bytes is None else source.bytes + size)


def _gguf_size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() and read_header(path).get("general.type") == "adapter" else None
    except (NotAModel, OSError):
        return None


def _folder_size(path: Path) -> int | None:
    try:
        return (path / WEIGHTS).stat().st_size if (path / CONFIG).is_file() else None
    except OSError:
        return None
