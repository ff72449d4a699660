"""Metrics of a runtime: wires the sampler and the task counters to the event bus and the history."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from openruntime_jupyter.engines.protocol import WorkerReport
from openruntime_jupyter.runtime.events.bus import EventBus
from openruntime_jupyter.runtime.metrics.counters import Counters
from openruntime_jupyter.runtime.metrics.gpu.base import NOTHING, Gpu, GpuFigures
from openruntime_jupyter.runtime.metrics.gpu.meters import Meters
from openruntime_jupyter.runtime.metrics.recorder import MetricsRecorder
from openruntime_jupyter.runtime.metrics.sampler import Sample, Sampler
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.system_probe import Machine
from openruntime_jupyter.runtime.tasks import views
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.system import Metrics, MetricsHistory, Timeframe


class MetricsService:
    """Metrics service of a runtime. It must be created on the runtime's loop, where everything but sampling runs.

    `metrics()` returns the metrics of the newest sample, `workers()` the reports of all workers.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        history: History,
        bus: EventBus,
        metrics: Callable[[], Metrics],
        workers: Callable[[], Sequence[WorkerReport]],
    ) -> None:
        self.meters = Meters()
        self.metrics_recorder = MetricsRecorder(settings, history)
        self._bus = bus
        self._metrics = metrics
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._sampler = Sampler(machine, settings.sample_interval, settings.idle_sample_interval, self._call_publish, self.meters)

    @property
    def counters(self) -> Counters:
        """Task counters since the runtime's start."""
        return self.metrics_recorder.counters

    @property
    def latest(self) -> Sample:
        """The newest sample."""
        return self._sampler.latest

    def start(self) -> None:
        """Take the first sample and start the sampler's thread."""
        self._bus.on_watch = self._watch
        self._sampler.start()
        self._publish()

    def fresh(self, device: str, seconds: float = 1.0) -> GpuFigures:
        """Return the newest metrics of a GPU; request a new sample if they are older than `seconds`."""
        if time.monotonic() - self.latest.taken > seconds:
            self._sampler.refresh()
        return self.latest.gpus.get(device, NOTHING)

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Sample these GPUs from now on."""
        self._sampler.set_gpus(gpus)

    async def history(self, timeframe: Timeframe, points: int = 300, runtime: str | None = None) -> MetricsHistory:
        """Return the metrics of the last `timeframe` in at most `points` points: of one of this user's runtimes, or of all together."""
        return await self.metrics_recorder.read(timeframe, points, runtime)

    async def stop(self, deadline: float = 1.0) -> None:
        """Stop sampling within `deadline` seconds and pass everything measured to the history."""
        await self._loop.run_in_executor(None, self._sampler.stop, deadline)
        self.metrics_recorder.write()

    def _watch(self) -> None:
        self._sampler.watch(self._bus.watched("metrics"))

    def _call_publish(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in between
            self._loop.call_soon_threadsafe(self._publish)

    def _publish(self) -> None:
        self._watch()
        metrics = self._metrics()
        self.metrics_recorder.sampled(self._sampler.latest, metrics, views.held(self._workers()))
        if self._bus.watched("metrics"):
            self._bus.publish("metrics", {"type": "metrics", "timestamp": timestamp(time.time()), "metrics": metrics.model_dump()})
