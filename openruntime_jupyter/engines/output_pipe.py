"""Reader of a worker's standard output or error, at a bounded rate.

Rich output uses another channel. To keep its position in the text, the worker writes a marker there, and text after a marker waits until
`skip_marker` is called once the rich output has been handled.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable

CHUNK = 65536
BUDGET = 1 << 20
"""Maximum bytes read from one pipe per `REFILL` seconds; a faster writer waits, so that it cannot keep the loop busy."""
REFILL = 0.1
TAIL_CHARACTERS = 2000


class OutputPipe:
    """Reader of a pipe. It passes text to `on_text` and keeps its end in `tail`."""

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
        """Read one chunk. Return False if none is available."""
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
        """Emit the text up to the next marker, or all except a possible beginning of a marker."""
        end = self._raw.find(self._marker)
        if end < 0:
            end = len(self._raw)
            start = self._raw.rfind(self._marker[:1], max(0, end - len(self._marker)))
            if start >= 0 and self._marker.startswith(self._raw[start:]):
                end = start
        text, self._raw = self._raw[:end], self._raw[end:]
        self._emit(self._decoder.decode(text))

    def skip_marker(self) -> None:
        """Emit the text after the current marker, once its rich output has been handled."""
        if self._raw.startswith(self._marker):
            self._raw = self._raw[len(self._marker) :]
            self._advance()

    def _emit(self, text: str) -> None:
        if text:
            self.tail = (self.tail + text)[-TAIL_CHARACTERS:]
            self._on_text(text)

    def begin(self) -> None:
        """Clear `tail` at the start of a task."""
        self.tail = ""

    def drain(self, everything: bool = False) -> None:
        """Read the text that is available now, which the task wrote before its result."""
        most = BUDGET if everything else 4 * CHUNK
        read = 0
        while self._open and read < most and self._read():
            read += CHUNK

    def finish_text(self) -> None:
        """Emit the remaining text at a task's end, including an incomplete character."""
        if not self._unfinished:
            return
        self._unfinished = False
        rest, self._raw = self._raw.replace(self._marker, b""), b""
        self._emit(self._decoder.decode(rest, final=True))
        self._decoder.reset()

    def close(self) -> None:
        """Stop reading."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            if self._refill is not None:
                self._refill.cancel()
