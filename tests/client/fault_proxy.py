"""TCP proxy before a server that answers, loses or cuts requests as a test says."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Fault:
    """Fault of the next `times` requests of `method` whose path ends with `path`, a regular expression.

    `status` answers without the server, `lose` lets the server answer and closes the connection instead, and `cut_after` closes it
    after that number of bytes of the response.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    retry_after: float | None = None
    content_type: str = "application/json"
    lose: bool = False
    cut_after: int = 1 << 62
    met: int = 0


class FaultProxy(socketserver.ThreadingTCPServer):
    """Proxy of the server at `target`. `url` is that of the API behind it."""

    allow_reuse_address = True
    daemon_threads = False  # closing waits for the threads

    def __init__(self, target: str, faults: list[Fault], port: int) -> None:
        super().__init__(("127.0.0.1", port), socketserver.BaseRequestHandler)
        self.target = urlsplit(target)
        self.faults = faults
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{self.target.path}"
        self._open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Pass one request on, with its fault."""
        with self._tracked(request), contextlib.suppress(OSError, EOFError):
            self._exchange(request)

    def disconnect(self) -> None:
        """End all connections."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)

    def _fault(self, head: bytes) -> Fault:
        method, path, _ = head.decode().split(" ", 2)
        for fault in self.faults:
            if fault.met < fault.times and fault.method == method and re.search(f"{fault.path}$", path.partition("?")[0]):
                fault.met += 1
                return fault
        return Fault(method, path)

    def _exchange(self, client: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += _read(client)
        head, _, body = received.partition(b"\r\n\r\n")
        fault = self._fault(head)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while len(body) < int(length[1] if length else 0):
            body += _read(client)
        if fault.status:
            text = b'{"status":"error","data":null,"error":"a planned fault","timestamp":"2026-01-01T00:00:00Z"}'
            again = f"Retry-After: {fault.retry_after:g}\r\n" if fault.retry_after is not None else ""
            lines = f"HTTP/1.1 {fault.status} No\r\nContent-Type: {fault.content_type}\r\n{again}Content-Length: {len(text)}\r\n"
            client.sendall(f"{lines}Connection: close\r\n\r\n".encode() + text)
            return
        if b"upgrade: websocket" not in head.lower():  # one request for each connection
            head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head) + b"\r\nConnection: close"
        with socket.create_connection((self.target.hostname, self.target.port or 80)) as server, self._tracked(server):
            server.sendall(head + b"\r\n\r\n" + body)
            upward = threading.Thread(target=_pass, args=(client, server))
            upward.start()
            left = fault.cut_after
            with contextlib.suppress(OSError):
                while left > 0 and (data := server.recv(min(65536, left))) and not fault.lose:
                    left -= len(data)
                    client.sendall(data)
            for each in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            upward.join()


def _read(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EOFError
    return data


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@contextlib.contextmanager
def faults(target: str, *planned: Fault, port: int = 0) -> Iterator[FaultProxy]:
    """Run a proxy of `target` during the block, by default on a free port. At its end all planned faults must have been met."""
    with FaultProxy(target, list(planned), port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
            proxy.disconnect()
    assert not [fault for fault in proxy.faults if fault.met < fault.times], "faults that no request met"
