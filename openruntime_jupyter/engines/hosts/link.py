"""Link between a runtime and the agent of a host: frames on any stream of bytes.

Header of a frame (network order): length of the JSON body (4 bytes), length of the data (4 bytes).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from typing import Protocol

HEADER = struct.Struct("!II")

MAX_BODY = 16 << 20
"""Maximum bytes of a JSON body, which limits the memory of the reader."""

MAX_DATA = 32 << 20
"""Maximum bytes of the data of a frame: the parameters of a task, or its payload."""

READ_BYTES = 1 << 18
PIPE_BYTES = 1 << 20
"""Size of a pipe. 100 MB there and back over pipes take 0.7 times as long as with 64 KiB."""

FULL = 1 << 20
"""Unsent bytes from which a link is full. It has drained at a quarter of them."""

LAZY_SECONDS = 0.002
"""Time for which a frame may wait for a later one, so that both go out together."""

CLOSE_SECONDS = 1.0
"""Maximum time for the last frames to be sent."""


class LinkClosed(Exception):
    """The connection has ended; the message says why, for example "the agent closed the connection"."""


class ByteStream(Protocol):
    """Connection that carries bytes in order, such as the pipes of `ssh` or a comm of Dask."""

    async def read(self) -> bytes | memoryview:
        """Return the next bytes, as many as there are; `b""` at the end. Raises `OSError`."""

    async def write(self, data: bytes) -> None:
        """Send bytes, and return when further ones may be sent. Raises `OSError`."""

    async def close(self) -> None:
        """Close the connection; never raises."""


class PipeStream:
    """Byte stream over the pipes of a process or a socket. `source` is the transport of the reader, if it is another than the writer's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: asyncio.ReadTransport | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._source = source

    async def read(self) -> bytes:
        """Return the next bytes; `b""` at the end."""
        return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Close the connection."""
        if self._source is not None:
            self._source.close()
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), CLOSE_SECONDS)


async def pipe_stream(source: int, target: int) -> PipeStream:
    """Return a stream that reads and writes two open descriptors, and closes them at its end.

    They are pipes, or both belong to one socket, as the standard input and output of a command of `ssh` do on some systems.
    """
    if os.path.samestat(os.fstat(source), os.fstat(target)):
        os.close(source)
        return PipeStream(*await asyncio.open_connection(sock=socket.socket(fileno=target), limit=READ_BYTES))
    for descriptor in (source, target):
        _enlarge(descriptor)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(READ_BYTES)
    reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", 0))
    writing, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(target, "wb", 0)
    )
    return PipeStream(reader, asyncio.StreamWriter(writing, protocol, reader, loop), reading)


def _enlarge(pipe: int) -> None:
    """Let a pipe hold `PIPE_BYTES` instead of 64 KiB, where the system allows that."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # another kind of file, or the user's limit is reached
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class Link:
    """Frames in both directions. Frames that are sent in one turn of the event loop go out together.

    Frames wait in memory while the other side reads slowly: a sender of many ones respects `full`.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._out: list[bytes] = []
        self._unsent = 0
        self._drained = asyncio.Event()
        self._wake = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._writer = self._loop.create_task(self._write())

    def send(self, body: bytes, data: bytes = b"", *, lazily: bool = False) -> None:
        """Send a frame without waiting. It is dropped if the connection has ended, which `receive` raises.

        With `lazily` it goes out together with the next frame, or after `LAZY_SECONDS`. The benchmark of hosts needs that: each write wakes
        the other side, and a short task ends before.
        """
        if self._closing or self._writer.done():
            return
        self._out += (HEADER.pack(len(body), len(data)), body, data)
        self._unsent += HEADER.size + len(body) + len(data)
        if self._unsent > FULL:
            self._drained.clear()
        if lazily:
            self._loop.call_later(LAZY_SECONDS, self._wake.set)
        else:
            self._wake.set()

    @property
    def full(self) -> bool:
        """True while the other side reads more slowly than this one sends."""
        return self._unsent > FULL

    async def drained(self) -> None:
        """Wait until most of what filled the link has been sent."""
        await self._drained.wait()

    async def _write(self) -> None:
        with contextlib.suppress(OSError):
            while self._out or not self._closing:
                if not self._out:
                    await self._wake.wait()
                    self._wake.clear()
                    continue
                out, self._out = self._out, []
                joined = b"".join(out)
                await self._stream.write(joined)
                self._unsent -= len(joined)
                if self._unsent <= FULL // 4:
                    self._drained.set()

    async def receive(self) -> tuple[bytes, bytes]:
        """Return body and data of the next frame.

        Raises `LinkClosed` at the end of the connection and for a frame that is too large.
        """
        body, data = HEADER.unpack(await self._take(HEADER.size))
        if body > MAX_BODY or data > MAX_DATA:
            raise LinkClosed(f"the other side sent a frame of {body} + {data} bytes, which no agent of OpenRuntime does")
        return await self._take(body), await self._take(data)

    async def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                more = await self._stream.read()
            except OSError as problem:
                raise LinkClosed(f"the connection was lost ({problem})") from problem
            if not more:
                raise LinkClosed("the other side closed the connection")
            self._received += more
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def close(self) -> None:
        """Send what is left, and close the connection; never raises."""
        self._closing = True
        self._wake.set()
        await asyncio.wait({self._writer}, timeout=CLOSE_SECONDS)
        self._writer.cancel()
        await asyncio.wait({self._writer})
        await self._stream.close()
