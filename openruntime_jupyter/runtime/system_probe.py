"""The machine's memory and load, where a container's limit counts as the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from openruntime_jupyter.memory import Memory, MemoryReader, own_cgroups

__all__ = ["Machine", "Memory"]

SHORTEST_LOAD = 0.1
"""Seconds below which a load is made of a few ticks of 10 ms, and says 0 or 100."""


class Machine:
    """Reads memory and CPU."""

    def __init__(self, cgroups: Callable[[], list[tuple[Path, bool]]] = own_cgroups) -> None:
        self._reader = MemoryReader(cgroups)
        psutil.cpu_percent()  # the first reading is of no interval, and says 0
        self._cpu_read_at = time.monotonic()
        self.total = self.memory().total
        """Bytes, as of the last look: for what is asked at every task."""

    def memory(self) -> Memory:
        """Total and available now: the tightest of the machine and the cgroups."""
        memory = self._reader.read()
        self.total = memory.total
        return memory

    def cpu_percent(self) -> float | None:
        """Percent of all cores since the last call; None where that was too short ago for the system's clock to tell."""
        before, self._cpu_read_at = self._cpu_read_at, time.monotonic()
        percent = psutil.cpu_percent()
        return percent if self._cpu_read_at - before >= SHORTEST_LOAD else None
