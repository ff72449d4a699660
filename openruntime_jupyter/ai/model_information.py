"""Information on local models: what `GET /models` says about each."""

from __future__ import annotations

from collections.abc import Mapping

from openruntime_jupyter.engines.protocol import ModelReport
from openruntime_jupyter.local_models.gguf import context_for, memory_for
from openruntime_jupyter.runtime.storage.model_speeds import Speed
from openruntime_jupyter.schemas.ai import ModelInfo, ResidentInfo
from openruntime_jupyter.schemas.values import Engine, ModelAbility, ModelSource

ENGINE_ABILITIES: Mapping[Engine, tuple[ModelAbility, ...]] = {"llama.cpp": ("schema", "logprobs"), "mlx-lm": ("schema", "logprobs")}
"""Abilities of an engine with every model, in addition to those of the chat template."""


def model_information(source: ModelSource, speed: Speed | None, *, show_path: bool, on_cpu: bool) -> ModelInfo:
    """Return the information on a model that is not in memory. `on_cpu` means that it would be loaded on a CPU."""
    return ModelInfo(
        name=source.name,
        kind=source.kind,
        engine=source.engine,
        path=(source.path or None) if show_path else None,
        quantisation=source.quantisation,
        bytes=source.bytes,
        context_length=source.context_length,
        memory_bytes=_memory(source, on_cpu=on_cpu),
        tokens_per_second=speed.writing if speed is not None else None,
        prompt_tokens_per_second=speed.reading if speed is not None else None,
        abilities=[*source.abilities, *ENGINE_ABILITIES[source.engine]] if source.bytes is not None else [],
    )


def resident_information(report: ModelReport) -> ResidentInfo:
    """Return the information on a worker that holds a model."""
    return ResidentInfo(
        lane=report.lane,
        state=report.state,
        resident_bytes=report.resident,
        idle_seconds=report.idle_seconds,
        keep_alive_seconds=report.keep_alive,
        task_id=report.task_id,
    )


def _memory(source: ModelSource, *, on_cpu: bool) -> int | None:
    if source.bytes is None:
        return None
    if source.kind == "gguf":
        return memory_for(source, context_for(source, 0))
    return source.float32_bytes if on_cpu and source.float32_bytes is not None else source.bytes
