"""The frames between a runtime and a worker: a small header, a JSON body, and an opaque payload.

Header (network order): kind (1 byte), generation of the worker (4), length of the body (4), length of the payload (8).
Both sides use this file; a worker of another `PROTOCOL` is refused at its hello.
"""

from __future__ import annotations

import json
import socket
import struct
from enum import IntEnum
from typing import Any

PROTOCOL = 2
HEADER = struct.Struct("!BIIQ")

INLINE_PAYLOAD = 1 << 20
"""Bytes up to which a payload travels in its frame; a larger one goes through a file."""

MAX_BODY = 16 << 20
"""Bytes of the largest JSON body that is read: a bound on what one frame can make the reader hold."""

MAX_OUTPUT_JSON = 1 << 20
"""Bytes of the largest JSON result: parsing more would hold up the reader's loop."""

MAX_DISPLAY_JSON = 8 << 20
"""Bytes of the largest rich output."""


class Kind(IntEnum):
    """What a frame says; the first three are the runtime's, the others the worker's."""

    RUN = 1
    LEAVE = 2
    HELLO = 10
    RESULT = 11
    RAISED = 12
    PROGRESS = 13
    DISPLAY = 14
    TOKEN = 15


class BrokenFrame(Exception):
    """The other side does not speak this protocol."""


def display_marker(secret: str) -> bytes:
    """What a worker writes to its output where rich output belongs; `secret` keeps a task from writing one by chance."""
    return b"\x1e" + secret.encode("ascii") + b"\x1e"


def encode(kind: Kind, generation: int, body: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, generation, len(body), len(payload)) + body + payload


def decode_header(header: bytes | bytearray | memoryview) -> tuple[Kind, int, int, int]:
    """Kind, generation, body length, payload length; raises `BrokenFrame`."""
    kind, generation, body, payload = HEADER.unpack(header)
    if body > MAX_BODY or payload > INLINE_PAYLOAD:
        raise BrokenFrame(f"a frame of {body} + {payload} bytes")
    try:
        return Kind(kind), generation, body, payload
    except ValueError:
        raise BrokenFrame(f"a frame of the unknown kind {kind}") from None


def receive(connection: socket.socket) -> tuple[Kind, int, dict[str, Any], bytes]:
    """The next frame of a blocking socket; raises `EOFError` at its end and `BrokenFrame`."""
    kind, generation, body, payload = decode_header(_exactly(connection, HEADER.size))
    return kind, generation, json.loads(_exactly(connection, body)), bytes(_exactly(connection, payload))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if got == 0:
            raise EOFError
        view = view[got:]
    return data
