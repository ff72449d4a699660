"""Memory of the machine, or of the container if its limit is lower."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")

UNLIMITED = 1 << 60
"""Limits in bytes from here on mean "no limit": cgroup v1 reports a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Total and available memory in bytes."""

    total: int
    available: int

    @property
    def percent_used(self) -> float:
        """Return the used share of the memory, 0 to 100."""
        return round(100 * (1 - self.available / self.total), 1) if self.total else 0.0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or `max`
        return None


def _inactive_file(path: Path, key: str) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def own_cgroups(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> list[tuple[Path, bool]]:
    """Return the folders of this process's memory cgroups, innermost first, each with True for cgroup version 2.

    In a container `root` is the container's cgroup, and the path from `membership` may not exist.
    """
    found: list[tuple[Path, bool]] = []
    try:
        lines = membership.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        second = controllers == ""
        if not second and "memory" not in controllers.split(","):
            continue
        top = root if second else root / "memory"
        folder = top / name.lstrip("/")
        while True:
            if folder.is_dir():
                found.append((folder, second))
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
    return found


def cgroup_memory(folder: Path, second: bool) -> Memory | None:
    """Return the limit of one cgroup and the memory left in it, or None without a limit. Reclaimable file pages count as left."""
    limit = _number(folder / ("memory.max" if second else "memory.limit_in_bytes"))
    used = _number(folder / ("memory.current" if second else "memory.usage_in_bytes"))
    if limit is None or used is None or limit >= UNLIMITED:
        return None
    used -= _inactive_file(folder / "memory.stat", "inactive_file" if second else "total_inactive_file")
    return Memory(limit, max(0, limit - max(0, used)))


class MemoryReader:
    """Reader of the memory within the cgroups that limit this process."""

    def __init__(self, cgroups: Callable[[], list[tuple[Path, bool]]] = own_cgroups) -> None:
        folders = cgroups() if sys.platform.startswith("linux") else []
        self._cgroups = [(folder, second) for folder, second in folders if cgroup_memory(folder, second) is not None]

    def read(self) -> Memory:
        """Return the total and available memory: the minimum over the machine and the cgroups."""
        machine = psutil.virtual_memory()
        total, available = machine.total, machine.available
        for folder, second in self._cgroups:
            memory = cgroup_memory(folder, second)
            if memory is not None:
                total, available = min(total, memory.total), min(available, memory.available)
        return Memory(total, min(available, total))


class Capacity(Protocol):
    """Memory and cores of a machine; `total` is in bytes, as read last."""

    total: int
    cores: int

    def memory(self) -> Memory:
        """Return the total and available memory."""


SHORTEST_LOAD = 0.1


class Machine:
    """Reader of memory and CPU load; `cores` is the number of logical cores."""

    def __init__(self, cgroups: Callable[[], list[tuple[Path, bool]]] = own_cgroups) -> None:
        self.cores = os.cpu_count() or 1
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
