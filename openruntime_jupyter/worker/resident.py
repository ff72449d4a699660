"""Resident memory of a process, as it reads its own."""

from __future__ import annotations

import contextlib
import os
import resource
import sys


class Resident:
    """Reader of this process's resident memory.

    On Linux it keeps a descriptor, because opening the file takes ten times longer than reading it.
    """

    FILE = "/proc/self/statm"
    PAGE = os.sysconf("SC_PAGE_SIZE")

    def __init__(self) -> None:
        try:
            self._statm: int | None = os.open(self.FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # only Linux has this file
            self._statm = None

    def bytes(self) -> int:
        """Return the present bytes. The peak of the process would include earlier tasks."""
        if self._statm is not None:
            with contextlib.suppress(OSError, IndexError, ValueError):  # a task may have closed it
                return int(os.pread(self._statm, 200, 0).split()[1]) * self.PAGE
        import psutil  # late, because workers on Linux do not need it

        return int(psutil.Process().memory_info().rss)


def own_peak() -> int:
    """Return the peak of this process in bytes."""
    return max_resident(resource.getrusage(resource.RUSAGE_SELF))


def children_peak() -> int:
    """Return the peak in bytes of the largest child process that has ended."""
    return max_resident(resource.getrusage(resource.RUSAGE_CHILDREN))


def max_resident(usage: resource.struct_rusage) -> int:
    """Return the peak of `usage` in bytes."""
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
