"""Cancelled prompts close the connection, which stops them at the provider."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.ai.provider_server import Connection, Request, chunk, providing
from tests.ai.providers.asking import Question


class Watch:
    """Endless response that records when the client disconnects."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.asked = threading.Event()
        self.saw = threading.Event()

    def __call__(self, connection: Connection, request: Request) -> None:
        self.asked.set()
        if self.pieces:
            connection.begin()
        for _ in range(self.pieces):
            connection.event(chunk("Hello "))
        if connection.gone():
            self.saw.set()


@pytest.mark.parametrize("pieces", [0, 1, 50], ids=["before the first byte", "after a piece", "amid the text"])
def test_a_cancel_closes_the_connection(pieces: int) -> None:
    async def body(url: str, watch: Watch) -> None:
        asked = Question(url)
        task = asyncio.ensure_future(asked.run())
        await asyncio.to_thread(watch.asked.wait, 20)
        while len(asked.listener.pieces) < pieces:
            await asyncio.sleep(0.005)
        assert not watch.saw.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(watch.saw.wait, 10)
        await asked.provider.close()

    watch = Watch(pieces)
    with providing(watch) as server:
        asyncio.run(body(server.url, watch))


def test_a_cancelled_prompt_leaves_the_others_alone() -> None:
    async def body(url: str, watch: Watch) -> None:
        asked = Question(url)
        first, second = (asyncio.ensure_future(asked.run()) for _ in range(2))
        while len(asked.listener.pieces) < 2:
            await asyncio.sleep(0.005)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.to_thread(watch.saw.wait, 10)
        assert not second.done()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asked.provider.close()

    watch = Watch(1)
    with providing(watch) as server:
        asyncio.run(body(server.url, watch))
