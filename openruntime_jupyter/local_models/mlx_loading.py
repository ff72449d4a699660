"""Loading of MLX folders with mlx-lm."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from openruntime_jupyter.errors import EngineError, InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.folder import NotAModel, read_config, shape_of
from openruntime_jupyter.local_models.language_model import INSTALL, loading
from openruntime_jupyter.local_models.mlx_model import MlxModel, weights_of
from openruntime_jupyter.memory import MemoryReader
from openruntime_jupyter.schemas.values import GenerationOptions, ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.operations.context import TaskContext

log = logging.getLogger(__name__)

FLOAT32_SHARE = 0.7
"""Share of the free memory that float32 weights may take; the rest is for prompts and other uses."""
PIECE = 256 << 20
"""Bytes of weights that are read in one step; interrupts are handled between steps."""


def load_mlx(source: ModelSource, context: TaskContext) -> MlxModel:
    """Load the model of a folder or of the hub, and warm it up.

    On a CPU with a fast BLAS the model computes in float32 if that fits into memory, otherwise in the precision of its files. Raises
    `NotAModel` and any exception of mlx-lm if it can't be loaded, `MemoryRefused` if it does not fit, and `EngineError` without mlx-lm.
    """
    import_mlx_lm(offline=source.kind != "hub")
    with contextlib.redirect_stdout(sys.stderr):
        source = _with_local_files(source)
        model, tokenizer = _load(source, _choose(source, context))
        _read_weights(model, source.name, context)
    loaded = MlxModel(source.name, model, tokenizer, source.context_length, source.cache_numbers)
    _warm(loaded, context)
    return loaded


def _with_local_files(source: ModelSource) -> ModelSource:
    """Return the source with local files, because mlx-lm's `load` would request a missing path from the hub."""
    if source.kind == "hub":
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source.path, allow_patterns=["*.json", "model*.safetensors", "*.jinja", "*.txt", "*.model"]))
        return replace(source, path=str(folder), kind="mlx", **shape_of(folder).fields)
    if not Path(source.path).exists():
        raise NotAModel(f"{source.path} no longer exists")
    return source


def _choose(source: ModelSource, context: TaskContext) -> bool:
    """Return whether to compute in float32; raise `MemoryRefused` if the model does not fit in either form."""
    free = MemoryReader().read().available
    if context.device_type == "cpu" or mx.metal.is_available():
        if (source.bytes or 0) > free:
            raise MemoryRefused.because(source.bytes or 0, free, f"Model {source.name}")
    else:
        context.require_memory(source.bytes or 0, f"Model {source.name}")
    wide = source.float32_bytes
    return context.fast_float32 and context.device_type == "cpu" and wide is not None and wide <= FLOAT32_SHARE * free


def _load(source: ModelSource, wide: bool) -> tuple[Any, Any]:
    from mlx_lm import utils

    path = Path(source.path)
    if "model_file" in read_config(path):  # mlx-lm before 0.32 runs it; later versions reject it too
        raise NotAModel(f"{source.name} can't be loaded: it needs a custom module, and the code of a model is never run")
    model, config = utils.load_model(path, lazy=True)
    tokenizer = utils.load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    if wide:
        convert(model)
    if source.adapter is not None:
        _add_adapter(model, source.name, source.adapter)
        if wide:
            model.update(tree_map(_wide, model.parameters()))
    return model, tokenizer


def _add_adapter(model: Any, name: str, adapter: str) -> None:
    from mlx_lm.tuner.utils import load_adapters

    try:
        load_adapters(model, adapter)
    except Exception as problem:  # damaged files cause many exceptions
        raise NotAModel(f"{adapter} can't be used with {name}: {type(problem).__name__}: {problem}") from None


def _read_weights(model: Any, name: str, context: TaskContext) -> None:
    """Read the weights into memory; report progress in bytes."""
    weights = list(weights_of(model).values())
    total, done, waiting = sum(weight.nbytes for weight in weights), 0, 0
    pending: list[Any] = []
    while weights:
        weight = weights.pop()
        pending.append(weight)
        waiting += weight.nbytes
        if waiting >= PIECE or not weights:
            mx.eval(pending)
            done, waiting = done + waiting, 0
            pending.clear()
            context.progress(done, total, loading(name))


def _warm(loaded: MlxModel, context: TaskContext) -> None:
    """Generate two tokens: MLX compiles some functions on first use, which takes seconds and can't be interrupted."""
    started = time.perf_counter()
    silent = context.silent()
    with contextlib.suppress(InvalidRequest):  # a template may reject this message; real prompts report it
        loaded.tokens_of(None, [{"role": "user", "content": "?"}])
    loaded.write(loaded.tokens_of("? ?", []), GenerationOptions(max_tokens=2, sampling={"temp": 1.0}), silent)
    log.debug("Warmed up %s in %.2f s", loaded.name, time.perf_counter() - started)


def import_mlx_lm(offline: bool) -> ModuleType:
    """Import and return the package; `offline` disables access to the hub. Raise `EngineError` with the install command."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import
    try:
        with _limits_kept():
            import mlx_lm
    except ImportError as problem:
        message = f"MLX models need mlx-lm, which can't be imported ({problem}). Install it with: {sys.executable} {INSTALL}"
        raise EngineError(message) from problem
    package: ModuleType = mlx_lm
    return package


@contextlib.contextmanager
def _limits_kept() -> Iterator[None]:
    """Disable `resource.setrlimit`: importing mlx_lm lowers the limits of open files, and fails if they are lower already.

    `test_cpu_model_computes_in_float32_only_with_fast_blas_and_keeps_open_file_limits` needs it.
    """
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real


def convert(model: Any) -> None:
    """Convert the lazily loaded `model` to float32 without evaluating it."""
    packed = [module for _, module in model.named_modules() if "scales" in module]
    for module in packed:
        for name in ("scales", "biases"):
            if (values := module.get(name)) is not None and mx.issubdtype(values.dtype, mx.floating):
                module[name] = values.astype(mx.float32)
    if packed:
        from mlx_lm.utils import dequantize_model

        dequantize_model(model)
    model.update(tree_map(_wide, model.parameters()))


def _wide(weight: Any) -> Any:
    return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) and weight.dtype != mx.float32 else weight
