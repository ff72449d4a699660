"""Standard output and error of a worker: one write per printed line, flushed at the end of each task."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, TextIO

_libc = ctypes.CDLL(None)


def _open(descriptor: int, encoding: str) -> TextIO:
    """Open a line-buffered text file; closing it leaves the descriptor open."""
    return open(descriptor, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)


def write_whole_lines() -> None:
    """Write each printed line at once, even if PYTHONUNBUFFERED requests a write per fragment."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = _open(descriptor, getattr(sys, name).encoding)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush_output() -> None:
    """Flush the buffers of Python and C, so that the output belongs to this task and survives a crash."""
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
