"""Whom a lane wakes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from openruntime_jupyter.engines.base import DeviceReport
from openruntime_jupyter.runtime.entry import Entry, QueueKey
from openruntime_jupyter.runtime.lane import Lane
from tests.runtimes import live


class Waiting:
    """What a lane reads of a task that waits."""

    def __init__(self, number: int) -> None:
        self.key = QueueKey(0.0, number)


def make_lane(slots: int) -> Lane:
    return Lane("device_0", DeviceReport("cpu", 0, "a processor", None, (), "0"), slots, 30.0, engine=cast("Any", None))


def test_each_task_wakes_one_slot_that_has_nothing_to_do_and_the_end_wakes_all() -> None:
    async def body() -> None:
        lane = make_lane(4)
        slots = [asyncio.create_task(lane.wait_for_task()) for _ in range(4)]
        await asyncio.sleep(0)
        for number in (1, 2):
            lane.add(cast("Entry", Waiting(number)))
            await asyncio.sleep(0)
            assert sum(slot.done() for slot in slots) == number
        lane.wake()
        await asyncio.wait_for(asyncio.gather(*slots), 5)

    live(body())


def test_a_slot_that_went_away_is_not_woken_in_place_of_another() -> None:
    async def body() -> None:
        lane = make_lane(2)
        stays, leaves = asyncio.create_task(lane.wait_for_task()), asyncio.create_task(lane.wait_for_task())
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        lane.add(cast("Entry", Waiting(1)))
        await asyncio.wait_for(stays, 5)

    live(body())
