"""A worker's standard output and error: whole lines, and the same for every task."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TextIO

from openruntime_jupyter.worker.threads import MAIN, turns


class Stream(io.TextIOWrapper):
    """A file that makes one write of each line, and drops what is written by threads of tasks that are over."""

    def write(self, text: str, /) -> int:
        """As every text file."""
        if threading.get_ident() == MAIN:
            return super().write(text)
        with turns.speaking:
            return super().write(text) if turns.heard() else len(text)


def open_stream(descriptor: int, encoding: str) -> TextIO:
    """A `Stream`; closing it leaves the descriptor open."""
    return Stream(open(descriptor, "wb", closefd=False), encoding=encoding, errors="backslashreplace", line_buffering=True)


def write_whole_lines() -> None:
    """Make one write of each printed line, also where PYTHONUNBUFFERED asks for one of every piece of it."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = open_stream(descriptor, getattr(sys, name).encoding)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class Streams:
    """Standard output and error, for the task after one that closed, replaced or redirected them."""

    def __init__(self) -> None:
        self._kept = {number: os.dup(number) for number in (1, 2)}
        self._places = {number: _place(number) for number in (1, 2)}
        self._files: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}

    def restore(self) -> None:
        """Have both lead to the runtime again."""
        for (name, file), (number, kept) in zip(self._files.items(), self._kept.items(), strict=True):
            if _place(number) != self._places[number]:
                os.dup2(kept, number)
            if file.closed:
                self._files[name] = opened = open_stream(number, file.encoding)
                setattr(sys, f"__{name}__", opened)
            if getattr(sys, name, None) is not self._files[name]:
                setattr(sys, name, self._files[name])


def _place(descriptor: int) -> tuple[int, int] | None:
    """What a descriptor leads to; None where it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino
