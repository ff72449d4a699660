"""Second connection between a runtime and an agent: requests, and the contents of files, in turn on one stream of bytes.

The runtime sends `PutArray`, the agent answers `Ready`, the runtime sends the elements, and the agent answers `Done`. For `GetArray` and
`GetPayload` the agent answers `Ready` and sends the bytes. Every answer may be `Failed` instead.

Files are read and written by threads, `PIECE` bytes at a time, while the previous piece travels. A stream accepts bytes only as fast as
the other side takes them, so each side holds two pieces at most.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from openruntime_jupyter.engines.hosts.link import HEADER, ByteStream, LinkClosed
from openruntime_jupyter.schemas.values import ArrayKind

PIECE = 4 << 20
"""Bytes of one read or write of a file."""
MOST_CHUNKS = 512
"""Maximum number of chunks of a piece, for streams that deliver small ones."""
MAX_MESSAGE = 1 << 20
"""Maximum bytes of a message."""


T = TypeVar("T")


@dataclass(slots=True)
class PutArray:
    """Request to store a copy of an array, whose elements follow once the answer is `Ready`. Numbers of copies are unique for a host."""

    copy: int
    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind
    type: Literal["put_array"] = "put_array"


@dataclass(slots=True)
class GetArray:
    """Request for the elements of a result array."""

    id: str
    type: Literal["get_array"] = "get_array"


@dataclass(slots=True)
class GetPayload:
    """Request for a stored payload."""

    name: str
    type: Literal["get_payload"] = "get_payload"


@dataclass(slots=True)
class Ready:
    """Answer: `size` bytes follow, from the runtime for `PutArray` and otherwise from the agent."""

    size: int
    type: Literal["ready"] = "ready"


@dataclass(slots=True)
class Done:
    """Answer: the agent has the array."""

    type: Literal["done"] = "done"


@dataclass(slots=True)
class Failed:
    """Answer: the request failed with the error of that class name."""

    error: str
    message: str
    type: Literal["failed"] = "failed"


FileMessage = PutArray | GetArray | GetPayload | Ready | Done | Failed
_messages: TypeAdapter[FileMessage] = TypeAdapter(Annotated[FileMessage, Field(discriminator="type")])


class FileStream:
    """Messages and file contents on a byte stream. Every method raises `LinkClosed` if the connection has ended.

    After any other exception, and after a cancellation, both sides disagree about the position in the stream: close it then.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._received: memoryview | bytes = b""
        """Received bytes that were not used yet."""

    async def send(self, message: FileMessage) -> None:
        """Send a message."""
        body = _messages.dump_json(message)
        await self._write(HEADER.pack(len(body), 0) + body)

    async def receive(self) -> FileMessage:
        """Return the next message. Raises `LinkClosed` also for bytes that are no message."""
        size, _ = HEADER.unpack(await self._take(HEADER.size))
        if size > MAX_MESSAGE:
            raise LinkClosed(f"the other side sent a message of {size} bytes, which no agent of OpenRuntime does")
        try:
            return _messages.validate_json(await self._take(size))
        except ValidationError as problem:
            raise LinkClosed(f"the other side sent an invalid message ({problem.errors(include_url=False)[0]['msg']})") from problem

    async def send_file(self, descriptor: int, start: int, end: int) -> None:
        """Send the bytes of an open file from `start` up to `end`. Raises `OSError` if the file can't be read."""
        file = _File(descriptor)
        try:
            reading = file.start(_read, start, end) if start < end else None
            while reading is not None:
                piece = await asyncio.shield(reading)
                start += len(piece)
                reading = file.start(_read, start, end) if start < end else None
                await self._write(piece)
        finally:
            file.close()

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes in the place of those of a file."""
        for start in range(0, len(data), PIECE):
            await self._write(data[start : start + PIECE])

    async def receive_file(self, descriptor: int, start: int, end: int) -> None:
        """Write the next bytes of the stream into an open file from `start` up to `end`. Raises `OSError` if the file can't be written."""
        file = _File(descriptor)
        try:
            writing: asyncio.Future[None] | None = None
            while start < end:
                chunks, size = await self._chunks(min(PIECE, end - start))
                if writing is not None:
                    await asyncio.shield(writing)
                writing = file.start(_write, chunks, start)
                start += size
            if writing is not None:
                await asyncio.shield(writing)
        finally:
            file.close()

    async def _chunks(self, most: int) -> tuple[list[memoryview | bytes], int]:
        """Return the next bytes as they come, at most `most` of them, and their number."""
        chunks: list[memoryview | bytes] = []
        size = 0
        while size < most and len(chunks) < MOST_CHUNKS:
            chunk = await self._next(most - size)
            chunks.append(chunk)
            size += len(chunk)
        return chunks, size

    async def _take(self, size: int) -> bytes:
        taken = bytearray()
        while len(taken) < size:
            taken += await self._next(size - len(taken))
        return bytes(taken)

    async def _next(self, most: int) -> memoryview | bytes:
        """Return the next bytes, between one and `most` of them."""
        if not self._received:
            try:
                self._received = await self._stream.read()
            except OSError as problem:
                raise LinkClosed(f"the connection was lost ({problem})") from problem
            if not self._received:
                raise LinkClosed("the other side closed the connection")
        if len(self._received) <= most:
            taken, self._received = self._received, b""
            return taken
        view = memoryview(self._received)
        self._received = view[most:]
        return view[:most]

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except OSError as problem:
            raise LinkClosed(f"the connection was lost ({problem})") from problem

    async def close(self) -> None:
        """Close the connection; never raises."""
        await self._stream.close()


class _File:
    """Duplicate of a file descriptor, used by one thread after the other and closed after the last one.

    A thread continues after a cancellation, so that its descriptor must not be closed by then and given to another file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._latest: asyncio.Future[Any] | None = None

    def start(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run `work(descriptor, *arguments)` in a thread."""
        self._latest = started = asyncio.get_running_loop().run_in_executor(None, work, self._descriptor, *arguments)
        return started

    def close(self) -> None:
        """Close the descriptor after the latest thread."""
        if self._latest is None:
            os.close(self._descriptor)
        else:
            self._latest.add_done_callback(self._close)

    def _close(self, latest: asyncio.Future[Any]) -> None:
        if not latest.cancelled():
            latest.exception()  # the caller has got it, or was cancelled
        os.close(self._descriptor)


def _read(descriptor: int, start: int, end: int) -> bytes:
    piece = os.pread(descriptor, min(PIECE, end - start), start)
    if not piece:
        raise OSError(f"the file ends {end - start:,} bytes early")
    return piece


def _write(descriptor: int, chunks: list[memoryview | bytes], start: int) -> None:
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            written = os.pwrite(descriptor, rest, start)
            rest, start = rest[written:], start + written
