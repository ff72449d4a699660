"""Metrics of a runtime: wires the sampler and the task counters to the event bus and the history."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from openruntime_jupyter.engines.protocol import WorkerReport, total_resident
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.runtime.metrics.counters import Clock, Counters
from openruntime_jupyter.runtime.metrics.gpu import NOTHING, Gpu, GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import Meters, Sample, Sampler
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.metrics import MetricColumns
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import TIMEFRAMES, Metrics, MetricSeries, MetricsHistory, Timeframe

WRITE_SECONDS = 10.0
"""Interval between writes: up to this many seconds are lost if the process is killed."""
LEAST_SECONDS = 10.0


class MetricsService:
    """Metrics service of a runtime. It must be created on the runtime's loop, where everything but sampling runs.

    `metrics()` returns the metrics of the newest sample, `workers()` the reports of all workers, and `gpus_of_hosts()` the readings of the
    GPUs of other hosts by device.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        history: History,
        bus: EventBus,
        metrics: Callable[[], Metrics],
        workers: Callable[[], Sequence[WorkerReport]],
        gpus_of_hosts: Callable[[], Mapping[str, GpuReadings]],
    ) -> None:
        self.meters = Meters()
        self._recorder = MetricsRecorder(settings, history)
        self.counters = self._recorder.counters
        """Task counters since the runtime's start."""
        self._bus = bus
        self._metrics = metrics
        self._workers = workers
        self._gpus_of_hosts = gpus_of_hosts
        self._loop = asyncio.get_running_loop()
        self._sampler = Sampler(machine, settings.sample_interval, settings.idle_sample_interval, self._call_publish, self.meters)

    @property
    def latest(self) -> Sample:
        """The newest sample."""
        return self._sampler.latest

    def start(self) -> None:
        """Take the first sample and start the sampler's thread."""
        self._bus.on_watch = self._watch
        self._sampler.start()
        self._publish()

    def fresh(self, device: str, seconds: float = 1.0) -> GpuReadings:
        """Return the newest metrics of a GPU; request a new sample if they are older than `seconds`."""
        if time.monotonic() - self.latest.taken > seconds:
            self._sampler.refresh()
        return self.latest.gpus.get(device, NOTHING)

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Sample these GPUs from now on."""
        self._sampler.set_gpus(gpus)

    async def history(self, timeframe: Timeframe, points: int = 300, runtime: str | None = None) -> MetricsHistory:
        """Return the metrics of the last `timeframe` in at most `points` points: of one of this user's runtimes, or of all together."""
        return await self._recorder.read(timeframe, points, runtime)

    async def stop(self, deadline: float = 1.0) -> None:
        """Stop sampling within `deadline` seconds and pass everything measured to the history."""
        await self._loop.run_in_executor(None, self._sampler.stop, deadline)
        self._recorder.write()

    def _watch(self) -> None:
        self._sampler.watch(self._bus.watched("metrics"))

    def _call_publish(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in between
            self._loop.call_soon_threadsafe(self._publish)

    def _publish(self) -> None:
        self._watch()
        metrics = self._metrics()
        sample = self._sampler.latest
        sample = replace(sample, gpus={**sample.gpus, **self._gpus_of_hosts()})
        self._recorder.sampled(sample, metrics, total_resident(self._workers()))
        if self._bus.watched("metrics"):
            self._bus.publish("metrics", {"type": "metrics", "timestamp": timestamp(time.time()), "metrics": metrics.model_dump()})


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
            self.counters.ledger.add_interval(_values(sample, metrics, worker_memory), end, sample.taken - self._sampled)
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
        name: MetricSeries.model_construct(unit=each.metric.unit, min=each.min, mean=each.mean, max=each.max)
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
