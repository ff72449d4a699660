from __future__ import annotations

import asyncio
import os

import pytest

from openruntime_jupyter.engines.worker_process import OutputPipe

MARKER = b"\x1e0123\x1e"


class Output:
    """Pipe that the test writes to."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self.text = ""
        self.pipe = OutputPipe(reader, asyncio.get_running_loop(), MARKER, self._hear)

    def _hear(self, text: str) -> None:
        self.text += text

    def write(self, data: bytes) -> str:
        """Write, let the pipe read, and return all text so far."""
        os.write(self.writer, data)
        self.pipe.drain()
        return self.text

    def close(self) -> None:
        self.pipe.close()
        os.close(self.writer)


@pytest.mark.parametrize("cut", range(1, len("é".encode() * 3 + MARKER + b"after")))
async def test_text_around_marker_keeps_position_at_any_split(cut: int) -> None:
    output = Output()
    data = "é".encode() * 3 + MARKER + b"after"
    output.write(data[:cut])
    assert output.write(data[cut:]) == "ééé", "text after the marker waits"
    output.pipe.skip_marker()
    assert output.text == "éééafter"
    output.close()


async def test_first_byte_of_marker_alone_is_text() -> None:
    output = Output()
    assert output.write(b"a\x1e") == "a"
    assert output.write(b"b") == "a\x1eb"
    output.write(b"\x1e01")
    output.pipe.finish_text()
    assert output.text == "a\x1eb\x1e01"
    output.close()


async def test_invalid_utf8_does_not_end_reading() -> None:
    output = Output()
    assert output.write(b"\xff\xfe ok") == "\ufffd\ufffd ok"
    output.close()


async def test_tail_contains_only_current_task() -> None:
    output = Output()
    output.write(b"x" * 5000)
    assert len(output.pipe.tail) == 2000
    output.pipe.begin()
    output.write(b"mine")
    assert output.pipe.tail == "mine"
    output.close()
