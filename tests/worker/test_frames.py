"""Frames as a worker reads them, and their bodies."""

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


def test_frames_that_come_together_are_taken_one_by_one(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(encode(Kind.RUN, 1, b'{"n": 1}', b"payload") + encode(Kind.LEAVE, 1, b"{}"))
    receiver = Receiver(theirs)
    assert receiver.receive() == (Kind.RUN, b'{"n": 1}')
    assert receiver.receive() == (Kind.LEAVE, b"{}")


def test_a_frame_that_comes_in_pieces_is_put_together(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    body = bytes(range(256)) * 4000
    writer = threading.Thread(target=ours.sendall, args=(encode(Kind.RUN, 1, body),))  # more than a socket holds
    writer.start()
    assert Receiver(theirs).receive() == (Kind.RUN, body)
    writer.join()


def test_the_end_of_the_stream_is_told_also_within_a_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(encode(Kind.RUN, 1, b"{}")[:-1])
    ours.close()
    with pytest.raises(EOFError):
        Receiver(theirs).receive()


@pytest.mark.parametrize(
    "header", [HEADER.pack(99, 1, 2, 0), HEADER.pack(Kind.RUN, 1, 1 << 30, 0), HEADER.pack(Kind.RUN, 1, 2, INLINE_PAYLOAD + 1)]
)
def test_what_is_no_frame_is_refused(header: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(header)
    with pytest.raises(BrokenFrame):
        Receiver(theirs).receive()


def test_a_body_survives_the_way_there_and_back() -> None:
    body = {"text": "ä\x00\U0001f600", "number": 2**70, "figure": 0.1, "nothing": None, "list": [True, {}]}
    assert loads(dumps(body)) == body


def test_a_folder_that_is_no_utf8_survives_too() -> None:
    assert loads(dumps({"payload_file": "/tmp/\udcff/x"})) == {"payload_file": "/tmp/\udcff/x"}


def test_what_lies_deep_and_what_is_no_number_is_read_as_the_json_module_reads_it() -> None:
    deep = b'{"output":' + b"[" * 500 + b"]" * 500 + b"}"
    assert loads(deep) == json.loads(deep)
    assert math.isnan(loads(b'{"output":{"value":NaN}}')["output"]["value"])
    assert loads(b'{"value":-Infinity}') == {"value": -math.inf}
