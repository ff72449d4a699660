"""From a model's files to a model that answers."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused, OpenRuntimeError
from openruntime_jupyter.local_models import float32
from openruntime_jupyter.local_models.folder import NotAModel, read_config, shape_of, weight_files
from openruntime_jupyter.local_models.gguf.conversions import Conversions
from openruntime_jupyter.local_models.language_model import LanguageModel, weights_of
from openruntime_jupyter.local_models.mlx_lm_import import import_mlx_lm
from openruntime_jupyter.memory import MemoryReader
from openruntime_jupyter.schemas.values import GenerationOptions, ModelSource

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext

log = logging.getLogger(__name__)

FLOAT32_SHARE = 0.7
"""Of the memory that is free, what float32 weights may take: the rest is for prompts, and for whatever else comes."""
PIECE = 256 << 20
"""Bytes of weights that are read at once, so that an interrupt is heard in between."""


def load(source: ModelSource, context: TaskContext) -> LanguageModel:
    """The model, ready to answer at full speed.

    On a CPU with a good BLAS it computes in float32 where that fits into the memory, else as its files are. Raises `InvalidRequest`
    for what can't be loaded, `MemoryRefused` for what does not fit, and `EngineError` where mlx-lm is missing.
    """
    context.progress(0, None, f"loading {source.name}")
    context.flush_progress()
    import_mlx_lm(offline=source.kind != "hub")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            source = _at_hand(source)
            wide = _choose(source, context)
            model, tokenizer = _load(source, wide)
            _read_weights(model, source.name, context)
    except OpenRuntimeError:
        raise
    except NotAModel as problem:
        raise InvalidRequest.of("parameters.model", str(problem)) from None
    except Exception as problem:  # damaged files and unknown kinds show in many ways; each must reach the user in words
        raise InvalidRequest.of("parameters.model", f"{source.name} can't be loaded: {type(problem).__name__}: {problem}") from problem
    loaded = LanguageModel(source.name, model, tokenizer, source.context_length, source.cache_numbers)
    _warm(loaded, context)
    return loaded


def _at_hand(source: ModelSource) -> ModelSource:
    """The source with files on this machine: `load` of mlx-lm itself would ask the hub for a path that is not there."""
    if source.kind == "hub":
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source.path, allow_patterns=["*.json", "model*.safetensors", "*.jinja", "*.txt", "*.model"]))
        return replace(source, path=str(folder), kind="mlx", **asdict(shape_of(folder)))
    if not Path(source.path).exists():
        raise InvalidRequest.of("parameters.model", f"{source.path} is not there any more")
    return source


def _choose(source: ModelSource, context: TaskContext) -> bool:
    """Whether to compute in float32; raises `MemoryRefused` where the model does not fit in any way."""
    free = MemoryReader().read().available
    if context.device_type == "cpu" or mx.metal.is_available():
        if (source.bytes or 0) > free:
            raise MemoryRefused(source.bytes or 0, free, f"The model {source.name}")
    else:
        context.require_memory(source.bytes or 0, f"The model {source.name}")
    wide = source.float32_bytes
    return context.fast_float32 and context.device_type == "cpu" and wide is not None and wide <= FLOAT32_SHARE * free


def _load(source: ModelSource, wide: bool) -> tuple[Any, Any]:
    path, kept = Path(source.path), Path(source.converted) if source.converted is not None else None
    if source.kind == "gguf":
        from openruntime_jupyter.local_models.gguf.loading import load_gguf

        return load_gguf(path, "float32" if wide else "stored", kept)
    from mlx_lm import utils

    if "model_file" in read_config(path):  # mlx-lm refuses that too from 0.32 on, and runs it before
        raise NotAModel(f"{source.name} can't be loaded: it is a custom module, and the code of a model is never run")
    model, config = utils.load_model(path, lazy=True)
    tokenizer = utils.load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    if wide:
        float32.convert(model, weight_files(path)[0], Conversions(kept) if kept is not None else None)
    return model, tokenizer


def _read_weights(model: Any, name: str, context: TaskContext) -> None:
    """Into memory, with progress in bytes."""
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
            context.progress(done, total, f"loading {name}")


def _warm(loaded: LanguageModel, context: TaskContext) -> None:
    """Write a token or two: MLX compiles some functions at their first use, which takes seconds and hears no interrupt."""
    started = time.perf_counter()
    silent = context.silent()
    with contextlib.suppress(InvalidRequest):  # a template may want something else; what it says is told to who asks
        loaded.tokens_of(None, [{"role": "user", "content": "?"}])
    loaded.write(loaded.tokens_of("? ?", []), GenerationOptions(max_tokens=2, sampling={"temp": 1.0}), silent)
    log.debug("%s was warm after %.2f s", loaded.name, time.perf_counter() - started)
