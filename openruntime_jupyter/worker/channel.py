"""Output of a worker to its runtime: frames on the data channel, and the standard streams.

Each printed line is one write. Everything is flushed at the end of each task.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import sys
import threading
from typing import Any

from openruntime_jupyter.worker.control import InterruptGuard
from openruntime_jupyter.worker.frames import Kind, Receiver, encode

_encode = json.JSONEncoder(ensure_ascii=False).encode
_libc = ctypes.CDLL(None)


def as_json(body: dict[str, Any]) -> bytes:
    """Encode `body` as JSON. Unpaired surrogates, which UTF-8 can't represent, become `?`."""
    return _encode(body).encode(errors="replace")


class Channel:
    """Data channel that sends complete frames from any thread and delays interrupts while it sends."""

    def __init__(self, connection: socket.socket, generation: int, guard: InterruptGuard) -> None:
        self._connection = connection
        self._generation = generation
        self._guard = guard
        self._lock = threading.Lock()
        self.receive = Receiver(connection).receive
        # A forked child of a task must neither send frames nor keep the socket open.
        os.register_at_fork(after_in_child=connection.close)

    @property
    def waiting(self) -> bool:
        """Return whether an unread frame is waiting."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, kind: Kind, body: bytes, payload: bytes = b"") -> None:
        """Send one frame."""
        with self._guard.shielded(), self._lock:
            self._connection.sendall(encode(kind, self._generation, body, payload))


def write_whole_lines() -> None:
    """Write each printed line at once, even if PYTHONUNBUFFERED requests a write per fragment."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        encoding = getattr(sys, name).encoding
        stream = open(descriptor, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115 - for the life of the process
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # otherwise a second buffer for the same descriptor


def flush_output() -> None:
    """Flush the buffers of Python and C, so that the output belongs to this task and survives a crash."""
    for name in ("stdout", "__stdout__", "stderr", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except (AttributeError, OSError, ValueError):  # a task may have removed or closed it
            continue
    _libc.fflush(None)
