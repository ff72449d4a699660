"""What a runtime tells of its devices, figures and operations, as wire types."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from openruntime_jupyter.engines.protocol import WorkerReport
from openruntime_jupyter.operations.base import Operation
from openruntime_jupyter.runtime.metrics.gpu.base import NOTHING, Gpu, GpuFigures
from openruntime_jupyter.runtime.metrics.sampler import Sample
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.schemas.system import Device, OperationInfo


def gpus(lanes: Iterable[Lane]) -> list[Gpu]:
    """What probes are asked for figures of."""
    return [Gpu(lane.id, lane.device.index, lane.device.name, lane.device.capabilities) for lane in lanes if lane.device.type == "gpu"]


def devices(lanes: Iterable[Lane], admission: Admission, sample: Sample) -> list[Device]:
    """Each lane's device, as its workers reported it, with the memory of now in bytes and the figures that can be read."""
    return [_device(lane, admission, sample) for lane in lanes]


def _device(lane: Lane, admission: Admission, sample: Sample) -> Device:
    on_gpu = lane.device.type == "gpu"
    figures = sample.gpus.get(lane.id, NOTHING)
    return Device(
        id=lane.id,
        name=lane.device.name,
        type="gpu" if on_gpu else "cpu",
        status="busy" if len(lane.running) >= lane.slots else "available",
        capabilities=list(lane.device.capabilities),
        memory_total=admission.total(lane),
        memory_available=_available(lane, admission, figures),
        utilization=figures.utilization if on_gpu else sample.cpu_utilization,
        temperature_celsius=figures.temperature,
        power_watts=figures.power,
        slots=lane.slots,
        running=len(lane.running),
        pending=len(lane),
        mlx_version=lane.device.mlx_version,
        blas=lane.device.blas,
        advice=lane.device.advice or sample.problems.get(lane.id),
    )


def _available(lane: Lane, admission: Admission, figures: GpuFigures) -> int:
    """Bytes free now: as the GPU tells where it has memory of its own, since other programs use that too."""
    shared = lane.device.type == "cpu" or "unified_memory" in lane.device.capabilities
    if shared or figures.memory_total is None or figures.memory_used is None:
        return admission.free(lane)
    return max(0, min(figures.memory_total - figures.memory_used, admission.total(lane)))


def metrics(scheduler: Scheduler, sample: Sample, answered: int) -> dict[str, Any]:
    """The fields of `Metrics`: utilisation 0.0 where there is no GPU, None where one is there that can't be read; `answered` prompts."""
    return {
        "gpu_utilization": _utilization(scheduler.lanes.values(), sample),
        "memory_usage": sample.memory_usage,
        "active_tasks": scheduler.running,
        "ai_tasks_processed": answered,
        "cpu_utilization": sample.cpu_utilization,
        "pending_tasks": scheduler.pending,
    }


def _utilization(lanes: Iterable[Lane], sample: Sample) -> float | None:
    """The mean over those GPUs that can be read."""
    figures = [sample.gpus.get(lane.id, NOTHING).utilization for lane in lanes if lane.device.type == "gpu"]
    if not figures:
        return 0.0
    known = [figure for figure in figures if figure is not None]
    return round(statistics.fmean(known), 1) if known else None


def held(workers: Sequence[WorkerReport]) -> int | None:
    """Bytes that those workers hold whose memory can be read; None where there are some, and none of them can be."""
    known = [worker.resident for worker in workers if worker.resident is not None]
    return sum(known) if known or not workers else None


def operations(known: dict[str, Operation]) -> list[OperationInfo]:
    """Each operation with the JSON schema of its parameters."""
    return [
        OperationInfo(
            name=kind.name, summary=kind.summary, needs_execute=kind.needs_execute, parameters_schema=kind.params.model_json_schema()
        )
        for kind in known.values()
    ]


def uptime(seconds: float) -> str:
    """`"2h 15m"`; the two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
