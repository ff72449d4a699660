"""Between two tasks a worker is put back as it was."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from typing import Any

MLX_CACHE_KEPT = 64 << 20
"""Bytes of freed buffers that MLX may keep between tasks; more would be missing to whoever comes next."""


_libc = ctypes.CDLL(None)


def _raw() -> Any:
    """The environment as `os.environ` keeps it: comparing that costs 1 µs, and comparing `os.environ` itself 60."""
    return getattr(os.environ, "_data", os.environ)


class Snapshot:
    """Working directory, environment and import path of this process, to be restored after each task."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._environment = dict(os.environ)
        self._raw_environment = dict(_raw())
        self._path = list(sys.path)
        self._argv = list(sys.argv)

    def restore(self) -> None:
        """Undo what a task changed."""
        if _raw() != self._raw_environment:
            os.environ.clear()
            os.environ.update(self._environment)
        if sys.path != self._path:
            sys.path[:] = self._path
        sys.argv[:] = self._argv
        try:
            changed = os.getcwd() != self._directory
        except FileNotFoundError:
            changed = True
        if changed:
            os.chdir(self._directory)


def drop_caches() -> None:
    """Give back what MLX keeps of a large task."""
    mx = sys.modules.get("mlx.core")
    if mx is not None and mx.get_cache_memory() > MLX_CACHE_KEPT:
        mx.clear_cache()


def forget_exception() -> None:
    """Drop what keeps a failed task's frames, and so its arrays, alive."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()


def flush_output() -> None:
    """Write out what Python and C hold back, so that it belongs to this task and survives a crash."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # a task may have replaced or closed it
            continue
    _libc.fflush(None)


class Resident:
    """Reads this process's resident memory; on Linux by a descriptor that is kept, since opening costs ten times the reading."""

    PAGE = os.sysconf("SC_PAGE_SIZE")

    def __init__(self) -> None:
        try:
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = None

    def bytes(self) -> int:
        """Now, in bytes; where only the peak can be read cheaply, that."""
        if self._statm is not None:
            with contextlib.suppress(OSError, IndexError, ValueError):  # a task may have closed it
                return int(os.pread(self._statm, 200, 0).split()[1]) * self.PAGE
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
