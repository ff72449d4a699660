"""Frames and their bodies, read by a worker."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from openruntime_jupyter.schemas.base import dumps, loads
from openruntime_jupyter.worker.frames import HEADER, INLINE_PAYLOAD, BrokenFrame, Kind, Receiver, encode


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_joined_frames_are_read_separately(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(encode(Kind.RUN, 1, b'{"n": 1}', b"payload") + encode(Kind.LEAVE, 1, b"{}"))
    receiver = Receiver(theirs)
    assert receiver.receive() == (Kind.RUN, b'{"n": 1}')
    assert receiver.receive() == (Kind.LEAVE, b"{}")


def test_split_frame_is_joined(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    body = bytes(range(256)) * 4000
    writer = threading.Thread(target=ours.sendall, args=(encode(Kind.RUN, 1, body),))  # more than a socket holds
    writer.start()
    assert Receiver(theirs).receive() == (Kind.RUN, body)
    writer.join()


def test_end_of_stream_raises_eof_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(encode(Kind.RUN, 1, b"{}")[:-1])
    ours.close()
    with pytest.raises(EOFError):
        Receiver(theirs).receive()


@pytest.mark.parametrize(
    "header", [HEADER.pack(99, 1, 2, 0), HEADER.pack(Kind.RUN, 1, 1 << 30, 0), HEADER.pack(Kind.RUN, 1, 2, INLINE_PAYLOAD + 1)]
)
def test_invalid_frame_is_rejected(header: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(header)
    with pytest.raises(BrokenFrame):
        Receiver(theirs).receive()


def test_body_round_trips() -> None:
    body = {"text": "ä\x00\U0001f600", "number": 2**70, "figure": 0.1, "nothing": None, "list": [True, {}]}
    assert loads(dumps(body)) == body


def test_non_utf8_folder_round_trips() -> None:
    assert loads(dumps({"payload_file": "/tmp/\udcff/x"})) == {"payload_file": "/tmp/\udcff/x"}


def test_deep_nesting_and_nan_are_read_like_json_module() -> None:
    deep = b'{"output":' + b"[" * 500 + b"]" * 500 + b"}"
    assert loads(deep) == json.loads(deep)
    assert math.isnan(loads(b'{"output":{"value":NaN}}')["output"]["value"])
    assert loads(b'{"value":-Infinity}') == {"value": -math.inf}


CODE = (
    "import sys\n"
    "from openruntime_jupyter.worker.channel import write_whole_lines\n"
    "write_whole_lines()\n"
    "print('a', 1, 'line')\n"
    "print('an', 2, 'error', file=sys.stderr)\n"
    "print('no end', end='')\n"
)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_printed_line_is_one_write_for_any_buffering(unbuffered: str) -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reader, writer:
        reader.settimeout(60)
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        end = writer.fileno()
        subprocess.run([sys.executable, "-c", CODE], stdout=end, stderr=end, env=environment, check=True, timeout=60)
        assert [reader.recv(100) for _ in range(3)] == [b"a 1 line\n", b"an 2 error\n", b"no end"]
