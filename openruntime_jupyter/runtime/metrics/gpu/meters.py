"""How busy a GPU was while one task had it to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from openruntime_jupyter.runtime.metrics.gpu.base import GpuFigures

SETTLE_SECONDS = 1.0
"""A driver's utilisation is of its last window, up to a second long: what is read sooner after a start is partly of what was before."""


@dataclass(slots=True)
class _Meter:
    gpu: str
    since: float
    alone: bool
    total: float = 0.0
    count: int = 0


class Meters:
    """One meter for each task that computes on a GPU, begun and ended on the loop, fed on the sampler's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meters: dict[str, _Meter] = {}

    @property
    def busy(self) -> bool:
        """Whether any task is metered now."""
        return bool(self._meters)

    def begin(self, task_id: str, gpu: str) -> None:
        """The task computes on that GPU from now on. Tasks that share a GPU spoil each other's figure."""
        with self._lock:
            others = [meter for meter in self._meters.values() if meter.gpu == gpu]
            for other in others:
                other.alone = False
            self._meters[task_id] = _Meter(gpu, time.monotonic(), alone=not others)

    def end(self, task_id: str) -> float | None:
        """The mean utilisation in percent; None where no sample fell into the run, or where the task was not alone."""
        with self._lock:
            meter = self._meters.pop(task_id, None)
            if meter is None or not meter.alone or not meter.count:
                return None
            return round(meter.total / meter.count, 1)

    def feed(self, figures: Mapping[str, GpuFigures], taken: float) -> None:
        """A sample that was begun at `taken`, in seconds of the monotonic clock."""
        with self._lock:
            for meter in self._meters.values():
                found = figures.get(meter.gpu)
                if found is not None and found.utilization is not None and taken - meter.since >= SETTLE_SECONDS:
                    meter.total += found.utilization
                    meter.count += 1
