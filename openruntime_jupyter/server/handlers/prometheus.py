"""A runtime's figures as Prometheus reads them: seconds, bytes and ratios, and no label that grows with the number of tasks.

A collector that reads the runtime when it is asked; there is no global registry, so that several runtimes of one process do not mix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from openruntime_jupyter.engines.protocol import WorkerState
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.runtime.metrics.counters import BOUNDS, Histogram
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks.views import held
from openruntime_jupyter.schemas.system import Device
from openruntime_jupyter.schemas.tasks import TaskState
from openruntime_jupyter.server.openapi.decorator import VERSIONS, TextType


def exposition(runtime: Runtime, media: TextType) -> tuple[bytes, str]:
    """The figures of now in one of Prometheus' formats, and its full content type."""
    registry = CollectorRegistry()
    registry.register(RuntimeCollector(runtime))
    encode, content_type = choose_encoder(f"{media}; version={VERSIONS[media]}")
    return encode(registry), content_type


class RuntimeCollector(Collector):
    """Tells the figures of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """All figures of now."""
        yield from self._about()
        yield from self._tasks()
        yield from self._machine()
        yield from _devices(self._runtime.devices())
        yield from self._workers()

    def _about(self) -> Iterator[Metric]:
        runtime = self._runtime
        yield InfoMetricFamily("openruntime_build", "The version of OpenRuntime.", {"version": runtime.version})
        yield _gauge("openruntime_start_time_seconds", "When the runtime was started, since the epoch.", runtime.metrics_service.counters.began)
        healthy = runtime.health().status == "healthy"
        yield _gauge("openruntime_healthy", "1 where /health says that all is well, else 0.", float(healthy))

    def _tasks(self) -> Iterator[Metric]:
        counters, now = self._runtime.metrics_service.counters, self._runtime.metrics()
        ended = CounterMetricFamily("openruntime_tasks", "Tasks that have ended since the start.", labels=("state", "operation"))
        # Those at zero too: otherwise the first one of a kind would be no increase.
        known = {(state.value, name): 0 for name in operations() for state in TaskState if state.terminal}
        for labels, number in {**known, **counters.ended}.items():
            ended.add_metric(labels, number)
        yield ended
        yield _gauge("openruntime_tasks_running", "Tasks that run.", now.active_tasks)
        yield _gauge("openruntime_tasks_pending", "Tasks that wait.", now.pending_tasks)
        yield _histogram("openruntime_task_queue_seconds", "How long tasks waited from submission to their first start.", counters.queued)
        yield _histogram("openruntime_task_run_seconds", "How long tasks ran, from their last start to their end.", counters.ran)

    def _machine(self) -> Iterator[Metric]:
        memory, load = self._runtime.memory(), self._runtime.metrics().cpu_utilization
        yield _gauge("openruntime_memory_used_bytes", "Memory in use on the machine, or in the container.", memory.total - memory.available)
        yield _gauge("openruntime_memory_total_bytes", "Memory of the machine, or of the container.", memory.total)
        if load is not None:
            yield _gauge("openruntime_cpu_utilization_ratio", "How busy the machine's cores are, 0 to 1.", load / 100)

    def _workers(self) -> Iterator[Metric]:
        workers = self._runtime.engine.workers()
        numbers = Counter(worker.state for worker in workers)
        by_state = GaugeMetricFamily("openruntime_workers", "Worker processes.", labels=("state",))
        for state in get_args(WorkerState):
            by_state.add_metric((state,), numbers[state])
        yield by_state
        if (resident := held(workers)) is not None:
            yield _gauge("openruntime_worker_memory_bytes", "Resident memory of all workers together.", resident)
        deaths = CounterMetricFamily("openruntime_worker_deaths", "Tasks that ended because their worker died, or took too much memory.")
        deaths.add_metric((), self._runtime.metrics_service.counters.deaths)
        yield deaths


DEVICE_GAUGES: tuple[tuple[str, str, Callable[[Device], float | None]], ...] = (
    ("slots", "How many tasks may compute on it at once.", lambda device: device.slots),
    ("tasks_running", "Tasks that run on it.", lambda device: device.running),
    ("tasks_pending", "Tasks that wait for it.", lambda device: device.pending),
    ("memory_total_bytes", "Its memory; the machine's where it shares that.", lambda device: device.memory_total),
    ("memory_available_bytes", "What is left of its memory for tasks.", lambda device: device.memory_available),
    (
        "utilization_ratio",
        "How busy it is, by all programs together, 0 to 1.",
        lambda device: None if device.utilization is None else device.utilization / 100,
    ),
    ("temperature_celsius", "Its temperature.", lambda device: device.temperature_celsius),
    ("power_watts", "What it draws.", lambda device: device.power_watts),
)
"""Each has the label `device`; a figure that can't be read is left out."""


def _devices(devices: Iterable[Device]) -> Iterator[Metric]:
    there = list(devices)
    about = InfoMetricFamily("openruntime_device", "The devices that MLX computes on.", labels=("device",))
    for device in there:
        told = {"name": device.name, "type": device.type, "mlx_version": device.mlx_version or "", "blas": device.blas or ""}
        about.add_metric((device.id,), told)
    yield about
    for name, text, read in DEVICE_GAUGES:
        family = GaugeMetricFamily(f"openruntime_device_{name}", text, labels=("device",), unit=_unit(name))
        for device in there:
            value = read(device)
            if value is not None:
                family.add_metric((device.id,), value)
        if family.samples:
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value, unit=_unit(name))


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    ends = [*map(floatToGoString, BOUNDS), "+Inf"]
    buckets = list(zip(ends, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets, histogram.total, unit=_unit(name))


def _unit(name: str) -> str:
    """The unit that OpenMetrics wants to be told where it ends a name."""
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "bytes", "ratio", "celsius", "watts") else ""
