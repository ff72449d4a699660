from __future__ import annotations

import asyncio

from openruntime_jupyter.runtime.tasks.entry import TokenLog, TokenPiece


async def text_of(log: TokenLog, since: int = 0) -> str:
    return "".join([piece.text async for piece in log.read(since)])


async def test_every_reader_gets_text_from_its_position() -> None:
    log = TokenLog()
    assert log.add("one ") == TokenPiece(0, "one ")
    readers = [asyncio.ensure_future(text_of(log, since)) for since in (0, 2, 4, 9)]
    await asyncio.sleep(0)
    assert log.add("two ") == TokenPiece(4, "two ")
    await asyncio.sleep(0)
    log.add("three")
    log.close()
    assert await asyncio.gather(*readers) == ["one two three", "e two three", "two three", "hree"]
    assert await text_of(log) == "one two three"


async def test_reader_restarts_with_new_attempt() -> None:
    log = TokenLog()
    found: list[TokenPiece] = []

    async def read() -> None:
        found.extend([piece async for piece in log.read()])

    log.add("of the first worker")
    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    log.restart()
    await asyncio.sleep(0)
    log.add("of the second")
    log.close()
    await reading
    assert found == [TokenPiece(0, "of the first worker"), TokenPiece(0, "of the second")]
