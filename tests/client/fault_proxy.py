"""TCP proxy before a server that answers, loses or cuts requests as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass
class FaultProxy:
    """Proxy of the server at `target`, with its faults."""

    target: str
    faults: list[Fault]
    port: int = 0

    @property
    def url(self) -> str:
        """URL of the API behind the proxy."""
        return f"http://127.0.0.1:{self.port}{urlsplit(self.target).path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request on, with its fault."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_close, writer)
            # asyncio reports a cancelled handler of a connection as an error.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._exchange(reader, writer, stack)

    def _fault(self, head: bytes) -> Fault:
        method, path, _ = head.decode().split(" ", 2)
        for fault in self.faults:
            if fault.met < fault.times and fault.method == method and re.search(f"{fault.path}$", path.partition("?")[0]):
                fault.met += 1
                return fault
        return Fault(method, path)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stack: contextlib.AsyncExitStack) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fault = self._fault(head)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if fault.status:
            text = b'{"status":"error","data":null,"error":"a planned fault","timestamp":"2026-01-01T00:00:00Z"}'
            again = f"Retry-After: {fault.retry_after:g}\r\n" if fault.retry_after is not None else ""
            lines = f"HTTP/1.1 {fault.status} No\r\nContent-Type: {fault.content_type}\r\n{again}Content-Length: {len(text)}\r\n"
            writer.write(f"{lines}Connection: close\r\n\r\n".encode() + text)
            await writer.drain()
            return
        if b"upgrade: websocket" not in head.lower():  # one request for each connection
            head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        address = urlsplit(self.target)
        from_server, to_server = await asyncio.open_connection(address.hostname, address.port)
        stack.push_async_callback(_close, to_server)
        to_server.write(head + body)
        up = asyncio.ensure_future(_pass(reader, to_server))
        stack.callback(up.cancel)
        left = fault.cut_after
        while left > 0 and (data := await from_server.read(min(65536, left))) and not fault.lose:
            left -= len(data)
            writer.write(data)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), 2)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def faults(target: str, *planned: Fault) -> Iterator[FaultProxy]:
    """Run a proxy of `target` during the block. At its end all planned faults must have been met."""
    proxy = FaultProxy(target, list(planned))
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def main() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
            proxy.port = server.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        ((loop, stop),) = loops
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not [fault for fault in proxy.faults if fault.met < fault.times], "faults that no request met"
