"""Devices, metrics and operations of a runtime as wire types."""

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
    """Return the GPUs whose metrics the probes read."""
    return [Gpu(lane.id, lane.device.index, lane.device.name, lane.device.capabilities) for lane in lanes if lane.device.type == "gpu"]


def devices(lanes: Iterable[Lane], admission: Admission, sample: Sample) -> list[Device]:
    """Return each lane's device as its workers reported it, with current memory in bytes and the readable metrics."""
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
    """Return the free bytes; from the driver for a GPU with its own memory, which other programs use too."""
    shared = lane.device.type == "cpu" or "unified_memory" in lane.device.capabilities
    if shared or figures.memory_total is None or figures.memory_used is None:
        return admission.free(lane)
    return max(0, min(figures.memory_total - figures.memory_used, admission.total(lane)))


def metrics(scheduler: Scheduler, sample: Sample, answered: int) -> dict[str, Any]:
    """Return the fields of `Metrics`. GPU utilisation is 0.0 without a GPU and None for an unreadable one; `answered` counts prompts."""
    return {
        "gpu_utilization": _utilization(scheduler.lanes.values(), sample),
        "memory_usage": sample.memory_usage,
        "active_tasks": scheduler.running,
        "ai_tasks_processed": answered,
        "cpu_utilization": sample.cpu_utilization,
        "pending_tasks": scheduler.pending,
    }


def _utilization(lanes: Iterable[Lane], sample: Sample) -> float | None:
    """Return the mean over the readable GPUs, in percent."""
    figures = [sample.gpus.get(lane.id, NOTHING).utilization for lane in lanes if lane.device.type == "gpu"]
    if not figures:
        return 0.0
    known = [figure for figure in figures if figure is not None]
    return round(statistics.fmean(known), 1) if known else None


def held(workers: Sequence[WorkerReport]) -> int | None:
    """Return the resident bytes of the workers whose memory is readable; None if there are workers and none is readable."""
    known = [worker.resident for worker in workers if worker.resident is not None]
    return sum(known) if known or not workers else None


def operations(known: dict[str, Operation]) -> list[OperationInfo]:
    """Return each operation with the JSON schema of its parameters."""
    return [
        OperationInfo(
            name=kind.name, summary=kind.summary, needs_execute=kind.needs_execute, parameters_schema=kind.params.model_json_schema()
        )
        for kind in known.values()
    ]


def uptime(seconds: float) -> str:
    """Return a duration such as `"2h 15m"`, in its two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
