"""Byte stream over a comm of Dask, on a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from distributed.comm import core

from openruntime_jupyter.engines.hosts.dask import CommStream

PIECE = 4 << 20
PIECES = 12


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[CommStream, Any]]:
    """Stream and the comm at its other end."""
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def accept(comm: Any) -> None:
        accepted.set_result(comm)

    listen: Any = core.listen  # untyped
    connect: Any = core.connect
    async with listen("tcp://127.0.0.1:0", accept) as listener:
        stream = CommStream(await connect(listener.contact_address))
        comm = await accepted
        try:
            yield stream, comm
        finally:
            await stream.close()
            comm.abort()


async def test_writer_waits_for_slow_reader() -> None:
    async with connected() as (stream, comm):
        written = 0

        async def write() -> None:
            nonlocal written
            for number in range(PIECES):
                await stream.write(bytes([number]) * PIECE)
                written += 1

        writing = asyncio.create_task(write())
        await asyncio.wait({writing}, timeout=0.3)
        assert written < PIECES // 2  # one piece is being sent, and the system holds some

        reader = CommStream(comm)
        received = bytearray()
        while len(received) < PIECES * PIECE:
            received += await reader.read()
        await writing
        assert received == b"".join(bytes([number]) * PIECE for number in range(PIECES))


async def test_end_of_connection_is_the_end_of_bytes() -> None:
    async with connected() as (stream, comm):
        await CommStream(comm).close()
        assert await stream.read() == b""


async def test_other_messages_are_rejected() -> None:
    async with connected() as (stream, comm):
        await comm.write({"op": "bytes"})
        with pytest.raises(OSError, match="dict instead of bytes"):
            await stream.read()
