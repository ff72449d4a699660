"""What a runtime tells of its devices, figures and operations, as wire types."""

from __future__ import annotations

from collections.abc import Iterable

from openruntime_jupyter.models import Device, Metrics, OperationInfo
from openruntime_jupyter.operations.base import Operation
from openruntime_jupyter.runtime.admission import Admission
from openruntime_jupyter.runtime.lane import Lane
from openruntime_jupyter.runtime.sampler import Sample
from openruntime_jupyter.runtime.scheduler import Scheduler


def devices(lanes: Iterable[Lane], admission: Admission) -> list[Device]:
    """Each lane's device, as its workers reported it, with the memory of now in bytes."""
    return [
        Device(
            id=lane.id,
            name=lane.device.name,
            type="gpu" if lane.device.type == "gpu" else "cpu",
            status="busy" if len(lane.running) >= lane.slots else "available",
            capabilities=list(lane.device.capabilities),
            memory_total=admission.total(lane),
            memory_available=admission.free(lane),
            slots=lane.slots,
            running=len(lane.running),
            pending=len(lane),
            mlx_version=lane.device.mlx_version,
            blas=lane.device.blas,
            advice=lane.device.advice,
        )
        for lane in lanes
    ]


def metrics(scheduler: Scheduler, sample: Sample) -> Metrics:
    """The figures of now: utilisation 0.0 where there is no GPU, None where one is there that can't be read."""
    has_gpu = any(lane.device.type == "gpu" for lane in scheduler.lanes.values())
    return Metrics(
        gpu_utilization=None if has_gpu else 0.0,
        memory_usage=sample.memory_usage,
        active_tasks=scheduler.running,
        ai_tasks_processed=0,
        cpu_utilization=sample.cpu_utilization,
        pending_tasks=scheduler.pending,
    )


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
