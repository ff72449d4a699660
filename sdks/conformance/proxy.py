"""Proxy in front of a real server. It forwards requests, except that it refuses, loses, delays, changes or cuts what a case plans."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Fault:
    """Planned fault of the requests that match `method` and `path`. Exactly one of the other fields says what happens."""

    method: str
    path: str
    """Regular expression of the whole path below the API's."""
    times: int = 1
    """Number of requests that meet the fault; 0 for all."""
    answer: dict[str, Any] | None = None
    """Respond without the server: `status`, and optionally `code`, `retry_after` in seconds, or `text` as another program does."""
    refuse: bool = False
    """Close the connection before the request is forwarded."""
    lose: bool = False
    """Close the connection when the server has responded, and forward nothing."""
    cut_after: int | None = None
    """Close the connection after this many bytes of the response."""
    hold_s: float = 0.0
    """Forward the response after these seconds."""
    add_fields: bool = False
    """Add a field to each object of the response's JSON, as a newer server may."""
    close: dict[str, Any] | None = None
    """Close the WebSocket with `code` after the server has sent `messages`."""
    met: int = 0

    def due(self, method: str, path: str) -> bool:
        """Return whether the request meets this fault."""
        return self.method == method and re.fullmatch(self.path, path) is not None and (self.times == 0 or self.met < self.times)

    @property
    def missed(self) -> bool:
        """Return whether fewer requests than planned met the fault."""
        return self.met < max(1, self.times)


class Proxy:
    """Proxy of the API at the address `target`, in a separate thread, by default on a free port.

    `url` is the address of the API behind it, and `requests` lists the method and path of each request.
    """

    def __init__(self, target: str, faults: list[Fault], port: int = 0) -> None:
        self.faults = faults
        self.requests: list[tuple[str, str]] = []
        self.port = port
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        ready.wait()

    @property
    def url(self) -> str:
        """Return the address of the API behind the proxy."""
        return f"http://127.0.0.1:{self.port}{self._target.path}"

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._request(reader, writer)
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, limit=1 << 26)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _fault(self, method: str, path: str) -> Fault:
        for fault in self.faults:
            if fault.due(method, path):
                fault.met += 1
                return fault
        return Fault(method, path)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split(" ", 2)
        path = target.partition("?")[0].removeprefix(self._target.path)
        self.requests.append((method, path))
        fault = self._fault(method, path)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if fault.refuse:
            return
        if fault.answer is not None:
            writer.write(_response(**fault.answer))
            await writer.drain()
            return
        if b"upgrade: websocket" not in head.lower():  # one request per connection
            head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        from_server, to_server = await asyncio.open_connection(self._target.hostname, self._target.port or 80, limit=1 << 26)
        to_server.write(head + body)
        upstream = asyncio.ensure_future(_copy(reader, to_server))
        upstream.add_done_callback(lambda _: to_server.close())  # the client has disconnected
        try:
            await self._respond(fault, from_server, writer)
        finally:
            upstream.cancel()
            to_server.close()

    async def _respond(self, fault: Fault, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if fault.lose:
            await server.read(1)
        elif fault.close is not None:
            await _close_after(server, client, **fault.close)
        elif fault.add_fields:
            client.write(_with_new_fields(await server.read(-1)))
            await client.drain()
        else:
            await asyncio.sleep(fault.hold_s)
            await _copy(server, client, fault.cut_after)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None) -> None:
    left = most if most is not None else 1 << 62
    while left > 0 and (data := await reader.read(min(65_536, left))):
        left -= len(data)
        writer.write(data)
        await writer.drain()


def _response(status: int, code: str | None = None, retry_after: float | None = None, text: str | None = None) -> bytes:
    data = None if code is None else {"code": code}
    envelope = {"status": "error", "data": data, "error": "This error is planned", "timestamp": "2026-01-01T00:00:00.000000Z"}
    body = (json.dumps(envelope) if text is None else text).encode()
    kind = "application/json" if text is None else "text/html"
    lines = [f"HTTP/1.1 {status} Planned", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    if retry_after is not None:
        lines.append(f"Retry-After: {retry_after}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _close_after(server: asyncio.StreamReader, client: asyncio.StreamWriter, messages: int, code: int) -> None:
    """Forward the handshake and some messages, then a close frame in place of the rest."""
    client.write(await server.readuntil(b"\r\n\r\n"))
    for _ in range(messages):
        head = await server.readexactly(2)
        size = head[1] & 0x7F
        if size >= 126:
            more = await server.readexactly(2 if size == 126 else 8)
            head, size = head + more, int.from_bytes(more, "big")
        client.write(head + await server.readexactly(size))
    reason = b"This close is planned"
    client.write(bytes([0x88, 2 + len(reason)]) + code.to_bytes(2, "big") + reason)
    await client.drain()


def _with_new_fields(response: bytes) -> bytes:
    head, _, body = response.partition(b"\r\n\r\n")

    def extended(value: Any) -> Any:
        if isinstance(value, list):
            return [extended(each) for each in value]
        if isinstance(value, dict):
            return {**{name: extended(each) for name, each in value.items()}, "field_of_a_newer_server": {"is": ["new"]}}
        return value

    body = json.dumps(extended(json.loads(body))).encode()
    return re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % len(body), head) + b"\r\n\r\n" + body
