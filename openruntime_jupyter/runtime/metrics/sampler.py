"""Sampler of machine and GPU metrics: every second while they are watched or a GPU is in use, else every ten."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings, Probe, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.apple import AppleProbe
from openruntime_jupyter.runtime.metrics.gpu.nvidia import NvidiaProbe

log = logging.getLogger(__name__)

STALE_SECONDS = 30.0
"""Age after which a sample is stale, unless three sampling intervals are longer."""

ProbeFactory = Callable[[Sequence[Gpu]], Probe]

PROBES: Mapping[str, ProbeFactory] = {"metal": AppleProbe, "cuda": NvidiaProbe}
"""Probe by the capability that MLX reports for a GPU."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Metrics of one moment; percentages, None for a metric that could not be read."""

    memory_usage: float | None = None
    cpu_utilization: float | None = None
    gpus: Mapping[str, GpuReadings] = field(default_factory=dict)
    """By device id, without GPUs that cannot be read."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Reason why a GPU cannot be read, by device id."""
    taken: float = 0.0
    """Start of the sampling in seconds of the monotonic clock."""


class Sampler:
    """Sampler that keeps the newest `Sample`; it calls `notify()` on its thread after each sample except the first.

    `meters` get every sample; while one of them is in use, samples are taken at the watched interval.
    """

    def __init__(
        self, machine: Machine, watched_interval: float, idle_interval: float, notify: Callable[[], None], meters: Meters | None = None
    ) -> None:
        self._newest = Sample()
        self._machine = machine
        self._watched_interval = watched_interval
        self._idle_interval = idle_interval
        self._notify = notify
        self._meters = meters or Meters()
        self._gpus: tuple[Gpu, ...] = ()
        self._opened: tuple[Gpu, ...] = ()
        self._probes = Probes()
        self._watched = False
        self._settled = False
        self._requested = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openruntime-sampler", daemon=True)

    @property
    def latest(self) -> Sample:
        """The newest sample, or an empty one if it is stale because a driver hangs and blocks the sampler."""
        newest = self._newest
        if time.monotonic() - newest.taken <= max(STALE_SECONDS, 3 * self._idle_interval):
            return newest
        return Sample(problems=newest.problems, taken=newest.taken)

    def start(self) -> None:
        """Take the first sample now and start the thread for the others."""
        self.sample()
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Stop the thread within `deadline` seconds."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(deadline)

    def watch(self, watched: bool) -> None:
        """Set whether the metrics are watched."""
        if watched and not self._watched:
            self._wake.set()
        self._watched = watched

    def refresh(self) -> None:
        """Take a sample soon, even if the metrics are not watched."""
        self._requested = True
        self._wake.set()

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Sample these GPUs from now on. Their probes open on the sampler's thread, because a driver may take seconds to start."""
        if gpus:
            self._gpus = tuple(gpus)
            self._wake.set()

    def sample(self) -> Sample:
        """Take a sample now. A metric that cannot be read does not affect the others."""
        taken = time.monotonic()
        self._newest = Sample(
            memory_usage=_read_or_none(lambda: self._machine.memory().percent_used),
            cpu_utilization=_read_or_none(self._machine.cpu_percent),
            gpus=self._probes.read(),
            problems=self._probes.problems,
            taken=taken,
        )
        self._meters.feed(self._newest.gpus, taken)
        return self._newest

    def _run(self) -> None:
        while True:
            # With GPUs the thread checks every second whether one is in use; waking it for each task would cost more.
            self._wake.wait(self._watched_interval if self._watched or self._opened or not self._settled else self._idle_interval)
            self._wake.clear()
            if self._closed.is_set():
                break
            if self._open_probes() or self._due():
                self.sample()
                self._notify()
        self._probes.close()

    def _open_probes(self) -> bool:
        """Open the probes of new GPUs. Return whether there are any."""
        if self._opened == self._gpus:
            return False
        self._probes.close()
        self._opened = self._gpus
        self._probes = Probes(self._opened)
        return True

    def _due(self) -> bool:
        if not self._settled:  # the first sample came too early to measure the load
            self._settled = True
            return True
        if self._requested or self._watched or self._meters.busy:
            self._requested = False
            return True
        return time.monotonic() - self._newest.taken >= 0.95 * self._idle_interval  # a wait may end slightly early


def _read_or_none(read: Callable[[], float | None]) -> float | None:
    try:
        return read()
    except Exception as problem:  # whatever the reason, other metrics must not be affected
        log.debug("Cannot read a metric: %s", problem)
        return None


class Probes:
    """Probes of a machine's GPUs. They are opened, read and closed on one thread; no method raises."""

    def __init__(self, gpus: Sequence[Gpu] = (), factories: Mapping[str, ProbeFactory] = PROBES) -> None:
        self._probes: list[Probe] = []
        self._silent: set[str] = set()
        self.problems: dict[str, str] = {}
        """Message for users why a GPU has no probe, by `Gpu.key`."""
        for capability, factory in factories.items():
            served = [gpu for gpu in gpus if capability in gpu.capabilities]
            if served:
                self._open(factory, served)

    def read(self) -> dict[str, GpuReadings]:
        """Return the current metrics by `Gpu.key`, without GPUs that cannot be read."""
        found: dict[str, GpuReadings] = {}
        for probe in self._probes:
            try:
                found |= probe.read()
            except Exception as problem:  # a failing probe must not affect the others
                if probe.name not in self._silent:
                    self._silent.add(probe.name)
                    log.warning("The probe %s cannot read GPU metrics: %s", probe.name, problem)
        return found

    def close(self) -> None:
        """Close every probe."""
        while self._probes:
            probe = self._probes.pop()
            try:
                probe.close()
            except Exception as problem:  # nothing else to do
                log.debug("The probe %s did not close: %s", probe.name, problem)

    def _open(self, factory: ProbeFactory, gpus: Sequence[Gpu]) -> None:
        try:
            self._probes.append(factory(gpus))
        except Exception as problem:  # a vendor's library may raise anything; tasks run without its metrics
            reason = str(problem) if isinstance(problem, ProbeUnavailable) else f"{type(problem).__name__}: {problem}"
            log.warning("Cannot read metrics of %s: %s", ", ".join(gpu.name for gpu in gpus), reason)
            self.problems |= {gpu.key: f"Cannot read its utilization and memory: {reason}" for gpu in gpus}


SETTLE_SECONDS = 1.0
"""A driver reports the utilization of its last window, up to a second long, so values right after a start include earlier work."""


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
        self._on: dict[str, dict[str, _Meter]] = {}
        """Meters by GPU and task."""

    @property
    def busy(self) -> bool:
        """True while any task has a meter."""
        return bool(self._meters)

    def begin(self, task_id: str, gpu: str) -> None:
        """Start the meter of a task that computes on a GPU. Tasks that share a GPU get no value."""
        with self._lock:
            here = self._on.setdefault(gpu, {})
            here.pop(task_id, None)  # it begins again in another worker
            for other in here.values():
                other.alone = False
            self._meters[task_id] = here[task_id] = _Meter(gpu, time.monotonic(), alone=not here)

    def end(self, task_id: str) -> float | None:
        """Return the mean utilization in percent; None without a sample during the run, or if the task shared the GPU."""
        with self._lock:
            meter = self._meters.pop(task_id, None)
            if meter is None:
                return None
            self._on[meter.gpu].pop(task_id, None)
            if not meter.alone or not meter.count:
                return None
            return round(meter.total / meter.count, 1)

    def feed(self, figures: Mapping[str, GpuReadings], taken: float) -> None:
        """Add a sample that was started at `taken`, in seconds of the monotonic clock."""
        with self._lock:
            for meter in self._meters.values():
                found = figures.get(meter.gpu)
                if found is not None and found.utilization is not None and taken - meter.since >= SETTLE_SECONDS:
                    meter.total += found.utilization
                    meter.count += 1
