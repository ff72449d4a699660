"""Frames and their bodies, read by a worker."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator

import pytest

from openruntime_jupyter.worker.codec import dumps, loads
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
