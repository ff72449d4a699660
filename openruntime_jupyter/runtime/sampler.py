"""One thread that reads the machine's figures: every second while somebody watches, else every ten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from openruntime_jupyter.runtime.machine import Machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """Percent; None where a figure could not be read."""

    memory_usage: float | None = None
    cpu_utilization: float | None = None


class Sampler:
    """Keeps the newest `Sample`; `tell()` is called on the sampler's thread after each one while somebody watches."""

    def __init__(self, machine: Machine, watched_interval: float, idle_interval: float, tell: Callable[[], None]) -> None:
        self.latest = Sample()
        self._machine = machine
        self._watched_interval = watched_interval
        self._idle_interval = idle_interval
        self._tell = tell
        self._watched = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openruntime-sampler", daemon=True)

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

    def sample(self) -> Sample:
        """Read everything now; each figure on its own, so that one that can't be read leaves the others."""
        self.latest = Sample(_figure(lambda: self._machine.memory().percent_used), _figure(self._machine.cpu_percent))
        return self.latest

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(self._watched_interval if self._watched else self._idle_interval)
            self._wake.clear()
            self.sample()
            if self._watched and not self._closed.is_set():
                self._tell()


def _figure(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except Exception as problem:  # a figure that can't be read is None, whatever the reason, and no other figure suffers
        log.debug("A figure could not be read: %s", problem)
        return None
