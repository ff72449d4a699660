"""Recorder that writes machine and task metrics to the history by second, and reads them back for the API."""

from __future__ import annotations

import time

from openruntime_jupyter.runtime.metrics.counters import Clock, Counters
from openruntime_jupyter.runtime.metrics.sampler import Sample
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.metrics import MetricColumns
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import TIMEFRAMES, Metrics, MetricSeries, MetricsHistory, Timeframe

WRITE_SECONDS = 10.0
"""Interval between writes: up to this many seconds are lost if the process is killed."""
LEAST_SECONDS = 10.0


class MetricsRecorder:
    """Metrics recorder of one runtime. A sample represents the time since the previous one; task metrics need no samples.

    A metric without a sample for three times the longest sampling interval has a gap.
    """

    def __init__(self, settings: Settings, history: History, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.counters = Counters(max(LEAST_SECONDS, 3 * settings.idle_sample_interval), monotonic, wall)
        self._history = history
        self._monotonic = monotonic
        self._wall = wall
        self._sampled: float | None = None
        self._written = monotonic()

    def sampled(self, sample: Sample, metrics: Metrics, worker_memory: int | None) -> None:
        """Record a new sample with its `metrics`; `worker_memory` is the memory of all workers in bytes."""
        if self._sampled is not None and sample.taken > self._sampled:
            end = self._wall() - (self._monotonic() - sample.taken)
            self.counters.ledger.lasted(_values(sample, metrics, worker_memory), end, sample.taken - self._sampled)
        self._sampled = sample.taken
        # A wait may end a little early.
        if self._monotonic() - self._written >= 0.95 * WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Pass everything measured until now to the history."""
        self._written = self._monotonic()
        self.counters.settle()
        self._history.put_metrics(self.counters.ledger.take())

    async def read(self, timeframe: Timeframe, points: int, runtime: str | None = None) -> MetricsHistory:
        """Return the metrics of the last `timeframe` in at most `points` points, of the given runtime or of all together."""
        self.write()
        now = self._wall()
        found = await self._history.metrics(now - TIMEFRAMES[timeframe], now, points, runtime, now)
        return _answer(timeframe, found)


def _values(sample: Sample, metrics: Metrics, worker_memory: int | None) -> dict[str, float]:
    gpu_memory = [figures.memory_used for figures in sample.gpus.values() if figures.memory_used is not None]
    values = {
        "gpu_utilization": metrics.gpu_utilization,
        "gpu_memory": sum(gpu_memory) if gpu_memory else None,
        "memory_usage": sample.memory_usage,
        "cpu_utilization": sample.cpu_utilization,
        "worker_memory": worker_memory,
    }
    return {name: value for name, value in values.items() if value is not None}


def _answer(timeframe: Timeframe, found: MetricColumns) -> MetricsHistory:
    series = {
        name: MetricSeries.model_construct(unit=each.figure.unit, min=each.min, mean=each.mean, max=each.max)
        for name, each in found.series.items()
    }
    return MetricsHistory.model_construct(
        timeframe=timeframe,
        start=timestamp(found.starts[0]),
        end=timestamp(found.starts[-1] + found.resolution),
        resolution_s=found.resolution,
        timestamps=[timestamp(start) for start in found.starts],
        series=series,
    )
