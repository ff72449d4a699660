"""Worker side of the data channel."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from typing import Any

from openruntime_jupyter.worker.frames import Kind, Receiver, encode
from openruntime_jupyter.worker.interrupts import InterruptGuard

_encode = json.JSONEncoder(ensure_ascii=False).encode


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
        self._receiver = Receiver(connection)
        os.register_at_fork(after_in_child=self._abandon)

    def receive(self) -> tuple[Kind, bytes]:
        """Return kind and body of the next frame from the runtime; raise `EOFError`."""
        return self._receiver.receive()

    @property
    def waiting(self) -> bool:
        """Return whether an unread frame is waiting."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, kind: Kind, body: dict[str, Any] | bytes, payload: bytes = b"") -> None:
        """Send one frame."""
        encoded = body if isinstance(body, bytes) else as_json(body)
        with self._guard.shielded(), self._lock:
            self._connection.sendall(encode(kind, self._generation, encoded, payload))

    def _abandon(self) -> None:
        # A forked child of a task must neither send frames nor keep the socket open.
        self._connection.close()
