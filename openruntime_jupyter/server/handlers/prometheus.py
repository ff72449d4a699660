"""Metrics of a runtime for Prometheus, in seconds, bytes and ratios. No label grows with the number of tasks.

Each scrape uses its own registry, so that several runtimes in one process do not mix.
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

from openruntime_jupyter.engines.protocol import WorkerState, total_resident
from openruntime_jupyter.operations.registry import operations
from openruntime_jupyter.runtime.metrics.counters import BOUNDS, Histogram
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.endpoints import VERSIONS, TextType
from openruntime_jupyter.schemas.hosts import HostState
from openruntime_jupyter.schemas.system import Device
from openruntime_jupyter.schemas.tasks import TaskState


def exposition(runtime: Runtime, media: TextType) -> tuple[bytes, str]:
    """Return the current metrics in a Prometheus format, and the full content type."""
    registry = CollectorRegistry()
    registry.register(RuntimeCollector(runtime))
    encode, content_type = choose_encoder(f"{media}; version={VERSIONS[media]}")
    return encode(registry), content_type


class RuntimeCollector(Collector):
    """Collector of the metrics of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        """Yield all current metrics."""
        yield from self._about()
        yield from self._tasks()
        yield from self._machine()
        yield from _devices(self._runtime.devices())
        yield self._hosts()
        yield from self._workers()

    def _about(self) -> Iterator[Metric]:
        runtime = self._runtime
        yield InfoMetricFamily("openruntime_build", "Version of OpenRuntime.", {"version": runtime.version})
        yield _gauge(
            "openruntime_start_time_seconds",
            "Start time of the runtime in seconds since the epoch.",
            runtime.metrics_service.counters.began,
        )
        healthy = runtime.health().status == "healthy"
        yield _gauge("openruntime_healthy", "1 if /health reports healthy, otherwise 0.", float(healthy))

    def _tasks(self) -> Iterator[Metric]:
        counters, now = self._runtime.metrics_service.counters, self._runtime.metrics()
        ended = CounterMetricFamily("openruntime_tasks", "Number of tasks finished since the start.", labels=("state", "operation"))
        # Includes zeros, because Prometheus would not see the first task of a label as an increase.
        known = {(state.value, name): 0 for name in operations() for state in TaskState if state.terminal}
        for labels, number in {**known, **counters.ended}.items():
            ended.add_metric(labels, number)
        yield ended
        yield _gauge("openruntime_tasks_running", "Number of running tasks.", now.active_tasks)
        yield _gauge("openruntime_tasks_pending", "Number of pending tasks.", now.pending_tasks)
        yield _histogram("openruntime_task_queue_seconds", "Time from submission to the first start of a task.", counters.queued)
        yield _histogram("openruntime_task_run_seconds", "Time from the last start of a task to its end.", counters.ran)

    def _machine(self) -> Iterator[Metric]:
        memory, load = self._runtime.memory(), self._runtime.metrics().cpu_utilization
        yield _gauge("openruntime_memory_used_bytes", "Used memory of the machine or the container.", memory.total - memory.available)
        yield _gauge("openruntime_memory_total_bytes", "Total memory of the machine or the container.", memory.total)
        if load is not None:
            yield _gauge("openruntime_cpu_utilization_ratio", "Utilization of the machine's cores, 0 to 1.", load / 100)

    def _hosts(self) -> Metric:
        numbers = Counter(host.state for host in self._runtime.engine.hosts())
        by_state = GaugeMetricFamily("openruntime_hosts", "Number of other machines that run tasks.", labels=("state",))
        for state in get_args(HostState):
            by_state.add_metric((state,), numbers[state])
        return by_state

    def _workers(self) -> Iterator[Metric]:
        workers = self._runtime.engine.workers()
        numbers = Counter(worker.state for worker in workers)
        by_state = GaugeMetricFamily("openruntime_workers", "Number of worker processes.", labels=("state",))
        for state in get_args(WorkerState):
            by_state.add_metric((state,), numbers[state])
        yield by_state
        if (resident := total_resident(workers)) is not None:
            yield _gauge("openruntime_worker_memory_bytes", "Resident memory of all workers.", resident)
        deaths = CounterMetricFamily(
            "openruntime_worker_deaths", "Number of tasks that failed because their worker died or exceeded its memory limit."
        )
        deaths.add_metric((), self._runtime.metrics_service.counters.deaths)
        yield deaths


DEVICE_GAUGES: tuple[tuple[str, str, Callable[[Device], float | None]], ...] = (
    ("slots", "Maximum number of concurrent tasks on the device.", lambda device: device.slots),
    ("tasks_running", "Number of running tasks on the device.", lambda device: device.running),
    ("tasks_pending", "Number of pending tasks that the device may run.", lambda device: device.pending),
    ("memory_total_bytes", "Total memory of the device, or of the machine if it is shared.", lambda device: device.memory_total),
    ("memory_available_bytes", "Memory of the device available for tasks.", lambda device: device.memory_available),
    (
        "utilization_ratio",
        "Utilization of the device by all programs, 0 to 1.",
        lambda device: None if device.utilization is None else device.utilization / 100,
    ),
    ("temperature_celsius", "Temperature of the device.", lambda device: device.temperature_celsius),
    ("power_watts", "Power consumption of the device.", lambda device: device.power_watts),
)
"""Gauges with the label `device`; values that cannot be read are omitted."""


def _devices(devices: Iterable[Device]) -> Iterator[Metric]:
    available = list(devices)
    about = InfoMetricFamily("openruntime_device", "Compute devices of MLX.", labels=("device",))
    for device in available:
        labels = {
            "host": device.id.rpartition(".")[0],
            "name": device.name,
            "type": device.type,
            "mlx_version": device.mlx_version or "",
            "blas": device.blas or "",
        }
        about.add_metric((device.id,), labels)
    yield about
    for name, text, read in DEVICE_GAUGES:
        family = GaugeMetricFamily(f"openruntime_device_{name}", text, labels=("device",), unit=_unit(name))
        for device in available:
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
    """Return the unit suffix of a metric name, which OpenMetrics requires as metadata."""
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "bytes", "ratio", "celsius", "watts") else ""
