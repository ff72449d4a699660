"""Slots that a lane wakes, and estimates of starts."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from openruntime_jupyter.engines.protocol import DeviceReport
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey
from openruntime_jupyter.schemas.tasks import Progress


class Waiting:
    """Pending task as far as a lane sees it."""

    def __init__(self, number: int) -> None:
        self.key = QueueKey(0.0, number)


def make_lane(slots: int) -> Lane:
    return Lane("device_0", DeviceReport("cpu", 0, "a processor", None, (), "0"), slots, 30.0, engine=cast("Any", None))


async def test_added_task_wakes_one_slot_and_stop_wakes_all() -> None:
    lane = make_lane(4)
    slots = [asyncio.create_task(lane.wait_for_task()) for _ in range(4)]
    await asyncio.sleep(0)
    for number in (1, 2):
        lane.add(cast("Entry", Waiting(number)))
        await asyncio.sleep(0)
        assert sum(slot.done() for slot in slots) == number
    lane.wake()
    await asyncio.wait_for(asyncio.gather(*slots), 5)


async def test_cancelled_slot_is_not_woken() -> None:
    lane = make_lane(2)
    stays, leaves = asyncio.create_task(lane.wait_for_task()), asyncio.create_task(lane.wait_for_task())
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    lane.add(cast("Entry", Waiting(1)))
    await asyncio.wait_for(stays, 5)


class Running(Waiting):
    """Running task as far as a lane sees it, which has run for `elapsed` seconds and may report how many are `left`."""

    def __init__(self, number: int, elapsed: float, left: float | None = None) -> None:
        super().__init__(number)
        self.progress = None if left is None else Progress(n=1, total=2, remaining=left)
        self.elapsed = lambda: elapsed


def starts(slots: int, ran: list[float], running: list[Running], waiting: int) -> list[float | None]:
    """Return the estimated seconds until the start of each of `waiting` tasks."""
    lane = make_lane(slots)
    for seconds in ran:
        lane.add_duration(seconds)
    lane.running = {str(index): cast("Entry", each) for index, each in enumerate(running)}
    entries = [cast("Entry", Waiting(100 + number)) for number in range(waiting)]
    for entry in entries:
        lane.add(entry)
    now = time.time()
    return [None if (start := lane.estimate(entry)) is None else start - now for entry in entries]


def test_start_is_estimated_from_recent_and_elapsed_durations() -> None:
    assert starts(1, [], [Running(0, 1.0)], 1) == [None]
    assert starts(1, [600.0], [Running(0, 60.0)], 3) == [pytest.approx(seconds, abs=50) for seconds in (540, 1140, 1740)]
    assert starts(2, [600.0], [Running(0, 0.0), Running(1, 300.0)], 2) == [pytest.approx(seconds, abs=50) for seconds in (300, 750)]
    assert starts(2, [600.0], [Running(0, 0.0)], 2) == [pytest.approx(seconds, abs=50) for seconds in (0, 600)]


def test_no_estimate_behind_task_longer_than_all_before() -> None:
    outrun = Running(0, 5000.0)
    assert starts(1, [600.0], [outrun], 2) == [None, None]
    assert starts(2, [600.0], [outrun, Running(1, 0.0)], 2) == [pytest.approx(seconds, abs=50) for seconds in (600, 1200)]
    assert starts(1, [600.0], [Running(0, 5000.0, left=900.0)], 2) == [pytest.approx(seconds, abs=50) for seconds in (900, 1500)]


def test_estimate_does_not_average_over_slots() -> None:
    """As an average over both slots would have it."""
    said = starts(2, [600.0], [Running(0, 0.0, left=100_000.0), Running(1, 0.0, left=300.0)], 3)
    assert said == [pytest.approx(seconds, abs=50) for seconds in (300, 900, 1500)]
