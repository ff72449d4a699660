"""Waiting for a task's end."""

from __future__ import annotations

import asyncio

from openruntime_jupyter.runtime.finish import Finish
from tests.runtimes import live


def test_everybody_who_waits_is_woken_and_who_comes_late_need_not_wait() -> None:
    async def body() -> None:
        finish = Finish()
        waiting = [asyncio.create_task(finish.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        finish.reach()
        finish.reach()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        await asyncio.wait_for(finish.wait(), 5)

    live(body())


def test_who_does_not_want_to_wait_any_longer_leaves_the_others_waiting() -> None:
    async def body() -> None:
        finish = Finish()
        patient, leaver = asyncio.create_task(finish.wait()), asyncio.create_task(finish.wait())
        await finish.wait(0.01)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert leaver.cancelled()
        assert not patient.done()
        assert not finish.reached
        finish.reach()
        await asyncio.wait_for(patient, 5)

    live(body())
