"""Scripted provider on a real loopback socket, with the faults of real providers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass
class ProviderServer:
    """Server that answers each request with the next of `answers`, repeating the last one."""

    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._start(self._accept)

    def script(self, *answers: Answer) -> ProviderServer:
        """Set the answers of the next requests, and forget the earlier requests."""
        with self._lock:
            self.answers = list(answers)
            self.requests.clear()
        return self

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if (request := _read(client)) is not None:
                    with self._lock:
                        self.requests.append(request)
                        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                    answer(Connection(client), request)
            except OSError:
                return  # the client disconnected, as some tests require
            except BaseException as problem:
                self.problems.append(problem)
        self._open.discard(client)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in tuple(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
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
