"""What a worker writes to a descriptor, read as it comes and at a bounded pace.

Rich output travels by another way. To keep its place in the text, the worker writes a marker where it belongs, and text behind
a marker waits until `go_on` says that the rich output has been told.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable

CHUNK = 65536
BUDGET = 1 << 20
"""Bytes read of one pipe in one `REFILL`; a writer that is faster waits, so that it can't keep the loop busy."""
REFILL = 0.1
TAIL_CHARACTERS = 2000


class OutputPipe:
    """Reads one end of a pipe. `on_text` gets what comes; `tail` keeps the last of it all."""

    def __init__(self, descriptor: int, loop: asyncio.AbstractEventLoop, marker: bytes, on_text: Callable[[str], None]) -> None:
        self.tail = ""
        self._on_text = on_text
        self._unfinished = False
        self._marker = marker
        self._raw = b""
        self._descriptor = descriptor
        self._loop = loop
        self._left = BUDGET
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = True
        self._paused = False
        self._refill: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        if self._left <= 0:
            self._loop.remove_reader(self._descriptor)
            self._paused = True
        else:
            self._read()
        if self._refill is None and self._open:
            self._refill = self._loop.call_later(REFILL, self._resume)

    def _resume(self) -> None:
        self._refill = None
        self._left = BUDGET
        if self._paused and self._open:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)

    def _read(self) -> bool:
        """Read one chunk; False where there is none."""
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._unfinished = True
        self._left -= len(data)
        self._raw += data
        self._advance()
        return True

    def _advance(self) -> None:
        """Give the text up to the next marker, or all of it but what may be the beginning of one."""
        end = self._raw.find(self._marker)
        if end < 0:
            end = len(self._raw)
            start = self._raw.rfind(self._marker[:1], max(0, end - len(self._marker)))
            if start >= 0 and self._marker.startswith(self._raw[start:]):
                end = start
        text, self._raw = self._raw[:end], self._raw[end:]
        self._give(self._decoder.decode(text))

    def go_on(self) -> None:
        """The rich output that the marker stands for has been told: what follows it may come."""
        if self._raw.startswith(self._marker):
            self._raw = self._raw[len(self._marker) :]
            self._advance()

    def _give(self, text: str) -> None:
        if text:
            self.tail = (self.tail + text)[-TAIL_CHARACTERS:]
            self._on_text(text)

    def begin(self) -> None:
        """What comes from here on is another task's."""
        self.tail = ""

    def drain(self, everything: bool = False) -> None:
        """Read what lies in the pipe now: what its task wrote before it answered."""
        most = BUDGET if everything else 4 * CHUNK
        read = 0
        while self._open and read < most and self._read():
            read += CHUNK

    def finish_text(self) -> None:
        """Give what is left, also of a character that was cut, at a task's end."""
        if not self._unfinished:
            return
        self._unfinished = False
        rest, self._raw = self._raw.replace(self._marker, b""), b""
        self._give(self._decoder.decode(rest, final=True))
        self._decoder.reset()

    def close(self) -> None:
        """Stop reading."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            if self._refill is not None:
                self._refill.cancel()
