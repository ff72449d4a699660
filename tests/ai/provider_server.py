"""Scripted provider on a real loopback socket, with the faults of real providers."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SSE = "text/event-stream"


@dataclass
class Request:
    """Request of the client."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Connection:
    """Connection of a client that waits for its response."""

    socket: socket.socket

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def answer(self, body: bytes | str, status: str = "200 OK", kind: str = "application/json", **headers: str) -> None:
        """Send a complete response."""
        data = body if isinstance(body, bytes) else body.encode(errors="surrogateescape")
        # The connection closes after each response. Without this header a client may reuse a closing connection.
        known = {"Content-Length": str(len(data)), "Connection": "close"}
        self.send(head(status, kind, {**known, **{name.replace("_", "-"): text for name, text in headers.items()}}))
        self.send(data)

    def begin(self, kind: str = SSE, version: str = "1.1") -> None:
        """Send the head of a response that ends with the connection."""
        self.send(head("200 OK", kind, {"Connection": "close"}, version))

    def event(self, data: Any) -> None:
        """Send a server-sent event."""
        self.send(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n")

    def text(self, *pieces: str, finish: str | None = "stop") -> None:
        """Send a complete response in pieces."""
        for piece in pieces:
            self.event(chunk(piece))
        if finish is not None:
            self.event(chunk(None, finish))

    def gone(self, seconds: float = 10.0) -> bool:
        """Return whether the client closes the connection within that time."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(ConnectionError):
            try:
                return self.socket.recv(1) == b""
            except TimeoutError:
                return False
        return True


Answer = Callable[[Connection, Request], object]


def head(status: str, kind: str, headers: dict[str, str], version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status}", f"Content-Type: {kind}", *(f"{name}: {text}" for name, text in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunk(text: str | None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """Return a chunk of a response."""
    said = {**({} if text is None else {"content": text}), **delta}
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "delta": said, "finish_reason": finish}],
    }


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """Return the chunk with the usage data, which has no choices."""
    figures = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [], "usage": figures}


class ProviderServer(socketserver.ThreadingTCPServer):
    """Server that answers each request with the next of `answers`, repeating the last one."""

    request_queue_size = 128

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.requests: list[Request] = []
        self.problems: list[BaseException | None] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def script(self, *answers: Answer) -> ProviderServer:
        """Set the answers of the next requests, and forget the earlier requests."""
        with self._lock:
            self.answers = list(answers)
            self.requests.clear()
        return self

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer the request of a connection, on the thread of the connection."""
        self._open.add(request)
        if (received := _read(request)) is not None:
            with self._lock:
                self.requests.append(received)
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
            answer(Connection(request), received)

    def handle_error(self, request: Any, client_address: Any) -> None:
        problem = sys.exc_info()[1]
        if not isinstance(problem, OSError):  # some tests require that the client disconnects
            self.problems.append(problem)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        for client in tuple(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.server_close()
        assert not self.problems, self.problems


def _read(client: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return None
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += client.recv(65536)
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


@contextlib.contextmanager
def providing(*answers: Answer) -> Iterator[ProviderServer]:
    """Run a provider with these answers, and join its threads at the end."""
    server = ProviderServer(list(answers))
    try:
        yield server
    finally:
        server.close()


def says(*pieces: str, figures: tuple[int, int] | None = None) -> Answer:
    """Return a successful response."""

    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text(*pieces)
        if figures is not None:
            connection.event(usage(*figures))
        connection.event("[DONE]")

    return answer


def refuses(status: str, body: Any, kind: str = "application/json", **headers: str) -> Answer:
    """Return an error response."""
    return lambda connection, request: connection.answer(body if isinstance(body, str) else json.dumps(body), status, kind, **headers)
