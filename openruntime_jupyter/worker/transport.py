"""The worker's side of the data channel."""

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
    """`body` as JSON. Half a surrogate pair, which a task may have in its text and no file or HTTP answer can hold, becomes `?`."""
    return _encode(body).encode(errors="replace")


class Channel:
    """Sends frames whole: one at a time, whichever thread sends, and with interrupts held back."""

    def __init__(self, connection: socket.socket, generation: int, guard: InterruptGuard) -> None:
        self._connection = connection
        self._generation = generation
        self._guard = guard
        self._lock = threading.Lock()
        self._receiver = Receiver(connection)
        os.register_at_fork(after_in_child=self._abandon)

    def receive(self) -> tuple[Kind, bytes]:
        """Kind and body of the runtime's next frame; raises `EOFError`."""
        return self._receiver.receive()

    @property
    def waiting(self) -> bool:
        """Whether the runtime has sent something that was not read yet."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, kind: Kind, body: dict[str, Any] | bytes, payload: bytes = b"") -> None:
        """Write one frame."""
        encoded = body if isinstance(body, bytes) else as_json(body)
        with self._guard.shielded(), self._lock:
            self._connection.sendall(encode(kind, self._generation, encoded, payload))

    def _abandon(self) -> None:
        # A fork that a task makes must neither speak for the worker nor keep its socket open.
        self._connection.close()
