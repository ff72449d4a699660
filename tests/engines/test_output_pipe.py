from __future__ import annotations

import asyncio
import os

import pytest

from openruntime_jupyter.engines.output_pipe import OutputPipe
from tests.runtimes import live

MARKER = b"\x1e0123\x1e"


class Heard:
    """A pipe whose writer is the test."""

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self.text = ""
        self.pipe = OutputPipe(reader, asyncio.get_running_loop(), MARKER, self._hear)

    def _hear(self, text: str) -> None:
        self.text += text

    def write(self, data: bytes) -> str:
        """Write, let the pipe read, and tell all that was heard so far."""
        os.write(self.writer, data)
        self.pipe.drain()
        return self.text

    def close(self) -> None:
        self.pipe.close()
        os.close(self.writer)


@pytest.mark.parametrize("cut", range(1, len("é".encode() * 3 + MARKER + b"after")))
def test_text_around_a_marker_keeps_its_place_wherever_the_pipe_cuts_it(cut: int) -> None:
    async def body() -> None:
        heard = Heard()
        data = "é".encode() * 3 + MARKER + b"after"
        heard.write(data[:cut])
        assert heard.write(data[cut:]) == "ééé", "what follows the marker waits"
        heard.pipe.go_on()
        assert heard.text == "éééafter"
        heard.close()

    live(body())


def test_a_lone_first_byte_of_a_marker_is_text_once_more_follows_or_the_task_ends() -> None:
    async def body() -> None:
        heard = Heard()
        assert heard.write(b"a\x1e") == "a"
        assert heard.write(b"b") == "a\x1eb"
        heard.write(b"\x1e01")
        heard.pipe.finish_text()
        assert heard.text == "a\x1eb\x1e01"
        heard.close()

    live(body())


def test_bytes_that_are_no_text_do_not_end_the_reading() -> None:
    async def body() -> None:
        heard = Heard()
        assert heard.write(b"\xff\xfe ok") == "\ufffd\ufffd ok"
        heard.close()

    live(body())


def test_the_tail_is_kept_and_is_the_tasks_own() -> None:
    async def body() -> None:
        heard = Heard()
        heard.write(b"x" * 5000)
        assert len(heard.pipe.tail) == 2000
        heard.pipe.begin()
        heard.write(b"mine")
        assert heard.pipe.tail == "mine"
        heard.close()

    live(body())
