"""Statistics of each live worker."""

from __future__ import annotations

from dataclasses import dataclass

from openruntime_jupyter.engines.protocol import Engine, Figures
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import Worker

FORGET_AT = 200
"""Number of records above which those of dead workers are dropped."""


@dataclass(slots=True)
class _Record:
    tasks: int = 0
    seconds: float = 0.0
    mlx_peak: int | None = None
    resident_peak: int | None = None
    metered_seconds: float = 0.0
    metered: float = 0.0


class WorkerStats:
    """Sums of task measurements by worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._records: dict[str, _Record] = {}

    def ran(self, worker: str, seconds: float, figures: Figures, gpu_utilization: float | None) -> None:
        """Add an ended task that used the worker for `seconds`, with the GPU's mean utilisation in percent."""
        record = self._records.get(worker)
        if record is None:
            self._forget()
            record = self._records[worker] = _Record()
        record.tasks += 1
        record.seconds += seconds
        record.mlx_peak = _larger(record.mlx_peak, figures.mlx_peak)
        record.resident_peak = _larger(record.resident_peak, figures.resident_peak)
        if gpu_utilization is not None:
            record.metered_seconds += seconds
            record.metered += seconds * gpu_utilization

    def report(self) -> list[Worker]:
        """Return the live workers, oldest first."""
        return [
            Worker(
                id=each.name,
                device=each.lane,
                state=each.state,
                interpreter=each.interpreter,
                started_at=timestamp(each.started),
                task_id=each.task_id,
                model=each.model,
                session=each.session.id if each.session is not None else None,
                session_name=each.session.name if each.session is not None else None,
                resident_bytes=each.resident,
                tasks=record.tasks,
                device_time_s=round(record.seconds, 6),
                resident_peak_bytes=_larger(record.resident_peak, each.resident),
                mlx_peak_bytes=record.mlx_peak,
                gpu_utilization=round(record.metered / record.metered_seconds, 1) if record.metered_seconds else None,
            )
            for each in sorted(self._engine.workers(), key=lambda each: each.started)
            for record in (self._records.get(each.name, _Record()),)
        ]

    def _forget(self) -> None:
        if len(self._records) >= FORGET_AT:
            living = {each.name for each in self._engine.workers()}
            self._records = {name: record for name, record in self._records.items() if name in living}


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(other, one)
