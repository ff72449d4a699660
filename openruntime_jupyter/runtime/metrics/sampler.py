"""One thread that reads the machine's figures: every second while somebody watches or a GPU computes, else every ten."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from openruntime_jupyter.runtime.metrics.gpu.base import Gpu, GpuFigures
from openruntime_jupyter.runtime.metrics.gpu.meters import Meters
from openruntime_jupyter.runtime.metrics.gpu.selection import Probes
from openruntime_jupyter.runtime.system_probe import Machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """Percent; None where a figure could not be read."""

    memory_usage: float | None = None
    cpu_utilization: float | None = None
    gpus: Mapping[str, GpuFigures] = field(default_factory=dict)
    """By device id; a GPU that nothing can be read of is not in it."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why a GPU can't be read, by device id."""
    taken: float = 0.0
    """When it was begun, in seconds of the monotonic clock."""


STALE_SECONDS = 30.0
"""After how long without a new sample, and after three that should have come, nothing is known any more."""


class Sampler:
    """Keeps the newest `Sample`; `tell()` is called on the sampler's thread after each one but the first.

    `meters` get every sample; while one of them is in use, samples are taken as if somebody watched.
    """

    def __init__(
        self, machine: Machine, watched_interval: float, idle_interval: float, tell: Callable[[], None], meters: Meters | None = None
    ) -> None:
        self._newest = Sample()
        self._machine = machine
        self._watched_interval = watched_interval
        self._idle_interval = idle_interval
        self._tell = tell
        self._meters = meters or Meters()
        self._gpus: tuple[Gpu, ...] = ()
        self._opened: tuple[Gpu, ...] = ()
        self._probes = Probes()
        self._watched = False
        self._settled = False
        self._asked = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openruntime-sampler", daemon=True)

    @property
    def latest(self) -> Sample:
        """The newest sample; one without figures where that has become too old, as a driver that hangs holds up all of them."""
        newest = self._newest
        if time.monotonic() - newest.taken <= max(STALE_SECONDS, 3 * self._idle_interval):
            return newest
        return Sample(problems=newest.problems, taken=newest.taken)

    def start(self) -> None:
        """Take the first sample now, and the others on a thread."""
        self.sample()
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """End within `deadline` seconds."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(deadline)

    def watch(self, watched: bool) -> None:
        """Somebody watches now, or nobody does."""
        if watched and not self._watched:
            self._wake.set()
        self._watched = watched

    def refresh(self) -> None:
        """Take a sample soon, whether or not somebody watches."""
        self._asked = True
        self._wake.set()

    def set_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Read these GPUs too. Their probes are opened on the sampler's thread, since a driver may take seconds to wake up."""
        if gpus:
            self._gpus = tuple(gpus)
            self._wake.set()

    def sample(self) -> Sample:
        """Read everything now; each figure on its own, so that one that can't be read leaves the others."""
        taken = time.monotonic()
        self._newest = Sample(
            memory_usage=_figure(lambda: self._machine.memory().percent_used),
            cpu_utilization=_figure(self._machine.cpu_percent),
            gpus=self._probes.read(),
            problems=self._probes.problems,
            taken=taken,
        )
        self._meters.feed(self._newest.gpus, taken)
        return self._newest

    def _run(self) -> None:
        while True:
            # With a GPU it looks once a second whether one is in use: waking it for each task would cost more.
            self._wake.wait(self._watched_interval if self._watched or self._opened or not self._settled else self._idle_interval)
            self._wake.clear()
            if self._closed.is_set():
                break
            if self._open_probes() or self._due():
                self.sample()
                self._tell()
        self._probes.close()

    def _open_probes(self) -> bool:
        """Whether there are GPUs that were not looked at before."""
        if self._opened == self._gpus:
            return False
        self._probes.close()
        self._opened = self._gpus
        self._probes = Probes(self._opened)
        return True

    def _due(self) -> bool:
        if not self._settled:  # the first sample came too soon to tell a load
            self._settled = True
            return True
        if self._asked or self._watched or self._meters.busy:
            self._asked = False
            return True
        return time.monotonic() - self._newest.taken >= 0.95 * self._idle_interval  # a wait may end a little early


def _figure(read: Callable[[], float | None]) -> float | None:
    try:
        return read()
    except Exception as problem:  # a figure that can't be read is None, whatever the reason, and no other figure suffers
        log.debug("A figure could not be read: %s", problem)
        return None
