"""Frames between a runtime and a worker: a small header, a JSON body, and an opaque payload.

Header (network order): kind (1 byte), generation of the worker (4), length of the body (4), length of the payload (8).
Both sides use this module. The runtime rejects the hello frame of a worker with another `PROTOCOL`.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

PROTOCOL = 4
HEADER = struct.Struct("!BIIQ")

INLINE_PAYLOAD = 1 << 20
"""Maximum bytes of a payload inside a frame; larger ones are sent in a file."""

READ_BYTES = 65_536

MAX_BODY = 16 << 20
"""Maximum bytes of a JSON body, which limits the memory of the reader."""

MAX_OUTPUT_JSON = 1 << 20
"""Maximum bytes of a JSON result; parsing more would block the event loop of the reader."""

MAX_DISPLAY_JSON = 8 << 20
"""Maximum bytes of a rich output."""


class Kind(IntEnum):
    """Type of a frame; the runtime sends those below 10, and the worker the others."""

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
    NEEDS_MEMORY = 18


_KINDS = {int(kind): kind for kind in Kind}


class BrokenFrame(Exception):
    """Frame that violates the protocol."""


def display_marker(secret: str) -> bytes:
    """Return the marker that a worker prints at the position of rich output; `secret` prevents accidental matches."""
    return b"\x1e" + secret.encode("ascii") + b"\x1e"


def encode(kind: Kind, generation: int, body: bytes, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return HEADER.pack(kind, generation, len(body), len(payload)) + body + payload


def decode_header(data: bytes | bytearray, start: int = 0) -> tuple[Kind, int, int, int]:
    """Return kind, generation, body length and payload length of the frame at `start`; raise `BrokenFrame`."""
    kind, generation, body, payload = HEADER.unpack_from(data, start)
    if body > MAX_BODY or payload > INLINE_PAYLOAD:
        raise BrokenFrame(f"a frame of {body} + {payload} bytes")
    if kind not in _KINDS:
        raise BrokenFrame(f"a frame of the unknown kind {kind}")
    return _KINDS[kind], generation, body, payload


class Receiver:
    """Reader of frames from a blocking socket, usually with one read per frame."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    def receive(self) -> tuple[Kind, bytes]:
        """Return kind and body of the next frame; raise `EOFError` at the end, or `BrokenFrame`."""
        self._need(HEADER.size)
        kind, _, body, payload = decode_header(self._data)
        end = HEADER.size + body
        self._need(end + payload)
        content, self._data = self._data[HEADER.size : end], self._data[end + payload :]
        return kind, content

    def _need(self, size: int) -> None:
        while len(self._data) < size:
            more = self._connection.recv(max(READ_BYTES, size - len(self._data)))
            if not more:
                raise EOFError
            self._data += more
