"""Weights as 32-bit numbers: on a CPU only they go through BLAS, which is several times as fast as quantised or half precision.

The converted weights of a quantised model are kept on disk, since converting takes several times as long as reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from openruntime_jupyter.worker.models.folder import weight_files
from openruntime_jupyter.worker.models.language_model import weights_of

log = logging.getLogger(__name__)

ENDING = ".float32.safetensors"


def convert(model: Any, kept: Path | None = None) -> None:
    """Turn the lazily loaded `model` into float32, still lazy; a quantised one by way of the file `kept`, which is made if need be."""
    packed = [module for _, module in model.named_modules() if "scales" in module and "group_size" in vars(module)]
    for module in packed:
        for name in ("scales", "biases"):
            if (values := module.get(name)) is not None and mx.issubdtype(values.dtype, mx.floating):
                module[name] = values.astype(mx.float32)
    if packed:
        from mlx_lm.utils import dequantize_model

        dequantize_model(model)
    model.update(tree_map(_wide, model.parameters()))
    if packed and kept is not None:
        _by_file(model, kept)


def _wide(weight: Any) -> Any:
    return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) and weight.dtype != mx.float32 else weight


def kept_file(model: Path, folder: Path | None) -> Path | None:
    """Where the converted weights of the model at this path lie; another file as soon as its own files change."""
    if folder is None:
        return None
    seen = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in (*weight_files(model), model / "config.json")]
    stamp = hashlib.sha256(repr((str(model), seen)).encode()).hexdigest()[:16]
    return folder / f"{_prefix(model)}{stamp}{ENDING}"


def _prefix(model: Path) -> str:
    return f"{model.name}-{hashlib.sha256(str(model).encode()).hexdigest()[:8]}-"


def _by_file(model: Any, kept: Path) -> None:
    try:
        weights: Any = mx.load(str(kept))
        model.load_weights(list(weights.items()), strict=True)
        return
    except FileNotFoundError:
        pass
    except Exception as problem:  # it is ours alone, and can be made again
        log.warning("%s is damaged, and is made again: %s", kept, problem)
    try:
        _write(weights_of(model), kept)
    except (OSError, RuntimeError) as problem:
        log.warning("The converted weights of a model can't be kept, so it is converted each time: %s", problem)


def _write(weights: dict[str, Any], kept: Path) -> None:
    """Under another name first: a file of the right name is whole."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = kept.with_name(f".{kept.stem}-{os.getpid()}.safetensors")
    try:
        mx.save_safetensors(str(partial), weights)
        partial.replace(kept)
    finally:
        partial.unlink(missing_ok=True)
    same = kept.name.removesuffix(ENDING)[:-16]
    for other in kept.parent.glob(f"*{ENDING}"):
        if other != kept and other.name.startswith(same):  # of what the model's files were before
            with contextlib.suppress(OSError):
                other.unlink()
