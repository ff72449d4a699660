"""Mean GPU utilisation of a task that has a GPU to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from openruntime_jupyter.runtime.metrics.gpu.base import GpuFigures

SETTLE_SECONDS = 1.0
"""A driver reports the utilisation of its last window, up to a second long, so values right after a start include earlier work."""


@dataclass(slots=True)
class _Meter:
    gpu: str
    since: float
    alone: bool
    total: float = 0.0
    count: int = 0


class Meters:
    """GPU meters, one per task that computes on a GPU. They begin and end on the loop and are fed on the sampler's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meters: dict[str, _Meter] = {}

    @property
    def busy(self) -> bool:
        """True while any task has a meter."""
        return bool(self._meters)

    def begin(self, task_id: str, gpu: str) -> None:
        """Start the meter of a task that computes on a GPU. Tasks that share a GPU get no value."""
        with self._lock:
            others = [meter for meter in self._meters.values() if meter.gpu == gpu]
            for other in others:
                other.alone = False
            self._meters[task_id] = _Meter(gpu, time.monotonic(), alone=not others)

    def end(self, task_id: str) -> float | None:
        """Return the mean utilisation in percent; None without a sample during the run, or if the task shared the GPU."""
        with self._lock:
            meter = self._meters.pop(task_id, None)
            if meter is None or not meter.alone or not meter.count:
                return None
            return round(meter.total / meter.count, 1)

    def feed(self, figures: Mapping[str, GpuFigures], taken: float) -> None:
        """Add a sample that was started at `taken`, in seconds of the monotonic clock."""
        with self._lock:
            for meter in self._meters.values():
                found = figures.get(meter.gpu)
                if found is not None and found.utilization is not None and taken - meter.since >= SETTLE_SECONDS:
                    meter.total += found.utilization
                    meter.count += 1
