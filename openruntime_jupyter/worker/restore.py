"""Between two tasks a worker is put back as it was."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from openruntime_jupyter.worker.interrupts import handler_of
from openruntime_jupyter.worker.streams import Streams

MLX_CACHE_KEPT = 64 << 20
"""Bytes of freed buffers that MLX may keep between tasks; more would be missing to whoever comes next."""
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2")
"""Those whose handlers a task may change; SIGINT and SIGTERM are the interrupt guard's."""

_libc = ctypes.CDLL(None)


def _raw() -> Any:
    """The environment as `os.environ` keeps it: comparing that costs 1 µs, and comparing `os.environ` itself 60."""
    return getattr(os.environ, "_data", os.environ)


class Snapshot:
    """Working directory, environment, import path, output and signals of this process, to be restored after each task."""

    def __init__(self) -> None:
        self._streams = Streams()
        self._signals = Signals()
        self._directory = _directory() or os.environ.get("TMPDIR", "/")
        self._environment = dict(os.environ)
        self._raw_environment = dict(_raw())
        self._path = list(sys.path)
        self._argv = list(sys.argv)

    def restore(self) -> None:
        """Undo what a task changed."""
        self._streams.restore()
        self._signals.restore()
        if _raw() != self._raw_environment:
            os.environ.clear()
            os.environ.update(self._environment)
        if sys.path != self._path:
            sys.path[:] = self._path
        sys.argv[:] = self._argv
        self.go_home()

    def go_home(self) -> None:
        """Be in the working directory, also where somebody has cleared it away."""
        if _directory() != self._directory:
            try:
                Path(self._directory).mkdir(mode=0o700, parents=True, exist_ok=True)
                os.chdir(self._directory)
            except OSError:
                os.chdir("/")


def _directory() -> str | None:
    """The working directory; None where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


class Signals:
    """The alarm and the handlers, for the task after one that left some."""

    def __init__(self) -> None:
        numbers = [int(signal.Signals[name]) for name in SIGNALS if name in signal.Signals.__members__]
        self._handlers = {number: handler_of(number) for number in numbers}

    def restore(self) -> None:
        """End the alarm, and undo every change of a handler."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if handler is not None and handler_of(number) != handler:
                signal.signal(number, handler)


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
    for shown, own in (("stdout", "__stdout__"), ("stderr", "__stderr__")):
        stream = getattr(sys, shown, None)
        _flush(stream)
        if getattr(sys, own, None) is not stream:  # a task has replaced one of them
            _flush(getattr(sys, own, None))
    _libc.fflush(None)


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except (AttributeError, OSError, ValueError):  # a task may have closed it
        return


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
