"""The frames between a runtime and a worker: a small header, a JSON body, and an opaque payload.

Header (network order): kind (1 byte), generation of the worker (4), length of the body (4), length of the payload (8).
Both sides use this file; a worker of another `PROTOCOL` is refused at its hello.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

PROTOCOL = 3
HEADER = struct.Struct("!BIIQ")

INLINE_PAYLOAD = 1 << 20
"""Bytes up to which a payload travels in its frame; a larger one goes through a file."""

READ_BYTES = 65_536

MAX_BODY = 16 << 20
"""Bytes of the largest JSON body that is read: a bound on what one frame can make the reader hold."""

MAX_OUTPUT_JSON = 1 << 20
"""Bytes of the largest JSON result: parsing more would hold up the reader's loop."""

MAX_DISPLAY_JSON = 8 << 20
"""Bytes of the largest rich output."""


class Kind(IntEnum):
    """What a frame says; those below 10 are the runtime's, the others the worker's."""

    RUN = 1
    LEAVE = 2
    PREPARE = 3
    HELLO = 10
    RESULT = 11
    RAISED = 12
    PROGRESS = 13
    DISPLAY = 14
    TOKEN = 15
    PREPARED = 16
    DECLINED = 17


_KINDS = {int(kind): kind for kind in Kind}


class BrokenFrame(Exception):
    """The other side does not speak this protocol."""


def display_marker(secret: str) -> bytes:
    """What a worker writes to its output where rich output belongs; `secret` keeps a task from writing one by chance."""
    return b"\x1e" + secret.encode("ascii") + b"\x1e"


def encode(kind: Kind, generation: int, body: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, generation, len(body), len(payload)) + body + payload


def decode_header(data: bytes | bytearray, start: int = 0) -> tuple[Kind, int, int, int]:
    """Kind, generation, body length, payload length of the frame that starts there; raises `BrokenFrame`."""
    kind, generation, body, payload = HEADER.unpack_from(data, start)
    if body > MAX_BODY or payload > INLINE_PAYLOAD:
        raise BrokenFrame(f"a frame of {body} + {payload} bytes")
    if kind not in _KINDS:
        raise BrokenFrame(f"a frame of the unknown kind {kind}")
    return _KINDS[kind], generation, body, payload


class Receiver:
    """Takes frames from a blocking socket, most of them by one read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    def receive(self) -> tuple[Kind, bytes]:
        """Kind and body of the next frame; raises `EOFError` at the end and `BrokenFrame`."""
        self._need(HEADER.size)
        kind, _, body, payload = decode_header(self._data)
        end = HEADER.size + body
        self._need(end + payload)
        found, self._data = self._data[HEADER.size : end], self._data[end + payload :]
        return kind, found

    def _need(self, size: int) -> None:
        while len(self._data) < size:
            more = self._connection.recv(max(READ_BYTES, size - len(self._data)))
            if not more:
                raise EOFError
            self._data += more
