"""Between two tasks a worker is put back as it was."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

MLX_CACHE_KEPT = 64 << 20
"""Bytes of freed buffers that MLX may keep between tasks; more would be missing to whoever comes next."""


class Snapshot:
    """Working directory, environment and import path of this process, to be restored after each task."""

    def __init__(self) -> None:
        self._directory = os.getcwd()
        self._environment = dict(os.environ)
        self._path = list(sys.path)
        self._argv = list(sys.argv)

    def restore(self) -> None:
        """Undo what a task changed."""
        if os.environ != self._environment:
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
    ctypes.CDLL(None).fflush(None)


def resident_bytes() -> int | None:
    """This process's resident memory in bytes; None where it can't be read cheaply."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
