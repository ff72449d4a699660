"""The machine's memory and load, where a container's limit counts as the machine's."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
SHORTEST_LOAD = 0.1
"""Seconds below which a load is made of a few ticks of 10 ms, and says 0 or 100."""

UNLIMITED = 1 << 60
"""cgroup v1 says 'no limit' by a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int
    available: int

    @property
    def percent_used(self) -> float:
        """0 to 100."""
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
    """The folders of this process's memory cgroups, innermost first, each with whether it is version 2.

    In a container the root shows the container's own; the path that `membership` gives may not exist there.
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
    """What one cgroup may use and has left; None where it has no limit. Pages of files that can be dropped count as left."""
    limit = _number(folder / ("memory.max" if second else "memory.limit_in_bytes"))
    used = _number(folder / ("memory.current" if second else "memory.usage_in_bytes"))
    if limit is None or used is None or limit >= UNLIMITED:
        return None
    used -= _inactive_file(folder / "memory.stat", "inactive_file" if second else "total_inactive_file")
    return Memory(limit, max(0, limit - max(0, used)))


class Machine:
    """Reads memory and CPU; remembers which cgroups limit this process."""

    def __init__(self, cgroups: Callable[[], list[tuple[Path, bool]]] = own_cgroups) -> None:
        folders = cgroups() if sys.platform.startswith("linux") else []
        self._cgroups = [(folder, second) for folder, second in folders if cgroup_memory(folder, second) is not None]
        psutil.cpu_percent()  # the first reading is of no interval, and says 0
        self._cpu_read_at = time.monotonic()
        self.total = self.memory().total
        """Bytes, as of the last look: for what is asked at every task."""

    def memory(self) -> Memory:
        """Total and available now: the tightest of the machine and the cgroups."""
        whole = psutil.virtual_memory()
        total, available = whole.total, whole.available
        for folder, second in self._cgroups:
            memory = cgroup_memory(folder, second)
            if memory is not None:
                total, available = min(total, memory.total), min(available, memory.available)
        self.total = total
        return Memory(total, min(available, total))

    def cpu_percent(self) -> float | None:
        """Percent of all cores since the last call; None where that was too short ago for the system's clock to tell."""
        before, self._cpu_read_at = self._cpu_read_at, time.monotonic()
        percent = psutil.cpu_percent()
        return percent if self._cpu_read_at - before >= SHORTEST_LOAD else None
