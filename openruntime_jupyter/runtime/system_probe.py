"""Memory and CPU load of the machine, or of the container if it has limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from openruntime_jupyter.memory import Memory, MemoryReader, own_cgroups

__all__ = ["Machine", "Memory"]

SHORTEST_LOAD = 0.1
"""Minimum seconds for measuring the load; a shorter time covers few 10 ms ticks and gives only 0 or 100."""


class Machine:
    """Reader of memory and CPU load."""

    def __init__(self, cgroups: Callable[[], list[tuple[Path, bool]]] = own_cgroups) -> None:
        self._reader = MemoryReader(cgroups)
        psutil.cpu_percent()  # the first reading covers no interval and returns 0
        self._cpu_read_at = time.monotonic()
        self.total = self.memory().total
        """Total bytes at the last reading, for code that runs for every task."""

    def memory(self) -> Memory:
        """Return the current total and available memory, by the tightest limit of the machine and the cgroups."""
        memory = self._reader.read()
        self.total = memory.total
        return memory

    def cpu_percent(self) -> float | None:
        """Return the load of all cores in percent since the last call; None if that was too recent to measure."""
        before, self._cpu_read_at = self._cpu_read_at, time.monotonic()
        percent = psutil.cpu_percent()
        return percent if self._cpu_read_at - before >= SHORTEST_LOAD else None
