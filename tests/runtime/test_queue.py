"""Order of the queue, states, slots and estimates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from openruntime_jupyter.engines.protocol import DeviceReport
from openruntime_jupyter.errors import InvalidRequest, TaskConflict, UnknownDevice
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.runtime.metrics.counters import Counters
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks.entry import TRANSITIONS, Entry, QueueKey, follow
from openruntime_jupyter.runtime.tasks.registry import COALESCE_SECONDS, TaskUpdates
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Task, TaskState
from openruntime_jupyter.time_left import TimeLeft
from tests.runtime.array_support import put
from tests.runtimes import busy, cell, completed, ended, pickled, runtime_in, submit

BURST = {"burst": "one"}
"""Parameters of calls that share a process, and so take little time."""


async def order_of(runtime: Runtime, ids: list[str]) -> list[str]:
    """Return the ids in the order in which the tasks started."""
    tasks = [await ended(runtime, task_id) for task_id in ids]
    return [task.task_id for task in sorted(tasks, key=lambda task: epoch(task.started_at) or 0)]


async def test_tasks_are_listed_and_run_by_priority(runtime: Runtime) -> None:
    holder = await busy(runtime)
    ids = [await submit(runtime, "call", BURST, priority=priority) for priority in (1, 5, 10, 5, 5)]
    before = (await runtime.tasks.get(ids[4])).submitted_at
    moved = await runtime.reprioritise(ids[4], 9)
    assert (moved.priority, moved.position, moved.submitted_at) == (9, 2, before)
    wanted = [ids[index] for index in (2, 4, 1, 3, 0)]
    pages = [await runtime.list_tasks(TasksQuery(limit=2, offset=offset, order="next")) for offset in (0, 2, 4, 6)]
    assert [task.task_id for page in pages for task in page.tasks] == wanted
    assert [task.position for page in pages for task in page.tasks] == [1, 2, 3, 4, 5]
    assert {page.total_count for page in pages} == {5}
    assert (await runtime.list_tasks(TasksQuery(state=[TaskState.PENDING], order="next"))).tasks[0].parameters is None
    for unfit in ({"before": holder}, {"operation": "call"}, {"owner": "me"}, {"state": [TaskState.RUNNING]}):
        with pytest.raises(InvalidRequest, match="`next`"):
            await runtime.list_tasks(TasksQuery(order="next", **unfit))
    with pytest.raises(TaskConflict, match="running"):
        await runtime.reprioritise(holder, 10)
    await runtime.cancel(holder)
    with pytest.raises(TaskConflict, match="cancelled"):
        await runtime.reprioritise(holder, 10)
    assert await order_of(runtime, ids) == wanted


async def test_task_of_lowest_priority_does_not_starve(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, aging_seconds=0.02) as runtime:
        holder = await busy(runtime)
        stream = [await submit(runtime, "call", BURST, priority=10) for _ in range(20)]
        low = await submit(runtime, "call", BURST, priority=1)
        await runtime.cancel(holder)
        while not (await runtime.tasks.get(low)).status.terminal:
            stream.append(await submit(runtime, "call", BURST, priority=10))
            await runtime.tasks.wait(stream[-10])
            assert len(stream) < 5000, "5,000 tasks of priority 10 passed the one of priority 1"
        started = epoch((await runtime.tasks.get(low)).started_at) or 0
        others = [await ended(runtime, task_id) for task_id in stream]
        passed = [task for task in others if (epoch(task.submitted_at) or 0) < started < (epoch(task.started_at) or 0)]
        assert passed, "no task of priority 10 was waiting when it started, so nothing was shown"


def test_one_step_of_priority_equals_the_aging_time() -> None:
    assert QueueKey.of(100.0, 10, 30.0, 2) < QueueKey.of(0.0, 1, 30.0, 1)
    assert QueueKey.of(271.0, 10, 30.0, 2) > QueueKey.of(0.0, 1, 30.0, 1)
    assert QueueKey.of(5.0, 5, 30.0, 1) < QueueKey.of(5.0, 5, 30.0, 2)


async def test_gpu_falls_back_to_cpu_and_unknown_device_is_rejected(runtime: Runtime) -> None:
    used = (await ended(runtime, await submit(runtime, "call", BURST))).device_used
    for preference in ("auto", "gpu", "cpu", used):
        task = await ended(runtime, await submit(runtime, "call", BURST, device_preference=preference))
        assert task.result is not None
        assert task.result.device_used == task.device_used == used
    assert runtime.devices()[0].type == "cpu", "this test is for machines without a GPU"
    with pytest.raises(UnknownDevice, match=str(used)):
        await submit(runtime, "call", device_preference="device_7")


async def test_pending_tasks_have_different_estimated_starts_once_they_are_known(runtime: Runtime) -> None:
    seconds = 0.3
    steps = "import time, openruntime_jupyter as o\nfor n in range(1001): o.progress(n, 1000); time.sleep(0.02)"
    holder = await busy(runtime)
    early = [await submit(runtime, "call", pickled(time.sleep, seconds), name="brief") for _ in range(2)]
    assert [(await runtime.tasks.get(each)).estimated_start for each in early] == [None, None], "nothing is known yet"
    await runtime.cancel(holder)
    for each in early:
        await ended(runtime, each)
    holder = await cell(runtime, steps)
    names = ["brief", "brief", "brief", "brief", "new", "brief"]
    waiting = [await submit(runtime, "call", pickled(time.sleep, seconds), name=name) for name in names]
    while (progress := (await runtime.tasks.get(holder)).progress) is None or progress.remaining is None:
        await asyncio.sleep(0.02)
    starts = [epoch((await runtime.tasks.get(each)).estimated_start) for each in waiting]
    assert starts[-1] is None, "the duration of the task before it is unknown"
    known = [start or 0.0 for start in starts[:-1]]
    assert known[0] > time.time() + 2
    assert all(0.5 * seconds <= later - earlier < 10 * seconds for earlier, later in pairwise(known))
    await runtime.cancel(holder)


async def test_operations_with_other_parameters_or_shapes_have_other_durations(runtime: Runtime) -> None:
    async def double(size: int) -> str:
        info = await put(runtime.arrays, np.ones(size, np.float32))
        return await submit(runtime, "compute", {"expression": "x + x", "inputs": {"x": {"array": info.id}}})

    def multiply(size: int) -> Awaitable[str]:
        return submit(runtime, "matrix_multiply", {"size": size, "iterations": 1})

    for known in (await multiply(64), await double(10)):
        await completed(runtime, known)
    holder = await cell(runtime, "import openruntime_jupyter as o, time\nfor n in range(1001): o.progress(n, 1000); time.sleep(0.02)")
    waiting = [await submitted for submitted in (multiply(64), double(10), multiply(64), multiply(65), multiply(64))]
    while (progress := (await runtime.tasks.get(holder)).progress) is None or progress.remaining is None:
        await asyncio.sleep(0.02)
    known_start = [(await runtime.tasks.get(each)).estimated_start is not None for each in waiting]
    assert known_start == [True, True, True, True, False], "the one of another size before the last takes an unknown time"
    other_shape = await double(11)
    for each in waiting[3:]:
        await runtime.cancel(each)
    assert (await runtime.tasks.get(other_shape)).estimated_start is not None
    last = await double(10)
    assert (await runtime.tasks.get(last)).estimated_start is None
    for each in (holder, *waiting, other_shape, last):
        await runtime.cancel(each)


def test_no_state_follows_a_final_one_and_every_other_can_end() -> None:
    for state, following in TRANSITIONS.items():
        if state.terminal:
            assert not following
        else:
            assert any(end.terminal for end in following)
    with pytest.raises(TaskConflict):
        follow(TaskState.CANCELLED, TaskState.COMPLETED)
    assert follow(TaskState.PENDING, TaskState.RUNNING) is TaskState.RUNNING


async def test_internal_error_at_end_of_task_blocks_neither_waiter_nor_slot(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("broken")

    for owner, name in ((runtime.worker_stats, "add_run"), (runtime.tasks, "record"), (runtime._admission, "blocked_reason")):
        with monkeypatch.context() as patch:
            task_id = await busy(runtime)
            patch.setattr(owner, name, breaks)
            task = await asyncio.wait_for(runtime.cancel(task_id), 10)
            assert task.status in ("failed", "cancelled")
        await completed(runtime, await submit(runtime, "call", BURST))
    assert "broken" in caplog.text


async def test_task_moved_and_cancelled_at_once_ends_once(runtime: Runtime) -> None:
    holder = await busy(runtime)
    subscription, _ = runtime.bus.subscribe()
    ended_before = runtime.metrics_service.counters.ended["cancelled", "call"]
    waiting = [await submit(runtime, "call", wait=False) for _ in range(10)]
    for task_id in waiting:
        await asyncio.gather(runtime.reprioritise(task_id, 9), runtime.cancel(task_id))
    subscription.close()
    ends = [event.body["data"]["task_id"] async for event in subscription if event.body["data"]["status"] == "cancelled"]
    assert sorted(ends) == sorted(waiting)
    assert runtime.metrics_service.counters.ended["cancelled", "call"] - ended_before == len(waiting)
    await runtime.cancel(holder)


async def test_states_are_published_once_stored_and_each_end_once(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, published, stored = runtime.history.commit, [], []

    async def slowly(task: Task) -> None:
        await asyncio.sleep(3 * COALESCE_SECONDS)
        await commit(task)
        stored.append((task.task_id, task.status))

    monkeypatch.setattr(runtime.history, "commit", slowly)
    subscription, _ = runtime.bus.subscribe()

    async def listen() -> None:
        async for event in subscription:
            data = event.body["data"]
            assert (data["task_id"], data["status"]) in stored, f"{data['status']} was published and is not stored"
            published.append((data["task_id"], data["status"]))

    listening = asyncio.ensure_future(listen())
    ids = [await submit(runtime, "call", BURST, wait=False) for _ in range(5)]
    for task_id in ids:
        while not (task := await runtime.tasks.get(task_id)).status.terminal:
            await asyncio.sleep(0)
        assert (task_id, task.status) in stored
        assert (await runtime.tasks.output(task_id)).finished
    subscription.close()
    await listening
    assert sorted(each for each in published if each[1] == "completed") == sorted((task_id, "completed") for task_id in ids)


class Changing:
    """Task as far as its updates see it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = TaskState.PENDING

    def event(self) -> dict[str, Any]:
        """Return the content of an event."""
        return {"task_id": self.name, "status": self.state.value}


async def test_states_are_coalesced_and_final_ones_published_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[Any, TaskState]] = []
    monkeypatch.setattr(Counters, "changed", lambda self, changes: counted.extend(changes))
    bus = EventBus()
    updates = TaskUpdates(bus, Counters(10.0))
    subscription, _ = bus.subscribe()
    first, second, third = (Changing(name) for name in ("first", "second", "third"))
    for task, states in (
        (first, (TaskState.PENDING, TaskState.RUNNING, TaskState.COMPLETED)),
        (second, (TaskState.PENDING, TaskState.RUNNING)),
        (third, (TaskState.PENDING,)),
    ):
        for task.state in states:
            updates.add(task)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    third.state = TaskState.CANCELLED  # it is not on disk yet
    assert len(counted) == 6
    await asyncio.sleep(3 * COALESCE_SECONDS)
    updates.add(third)  # type: ignore[arg-type]
    updates.close()
    subscription.close()
    published = [tuple(event.body["data"].values()) async for event in subscription]
    assert published == [("first", "completed"), ("second", "running"), ("third", "cancelled")]


class Waiting:
    """Pending task as far as a lane sees it."""

    waiting_for = None
    kind = ("call", "work", None)
    queue = "auto"

    def __init__(self, number: int) -> None:
        self.key = QueueKey(0.0, number)


def make_lane(slots: int) -> tuple[Lanes, Lane]:
    lanes = Lanes()
    lanes.join(Lane("device_0", DeviceReport("cpu", 0, "a processor", None, (), "0"), slots, 30.0, cast("Any", None), Machine()))
    return lanes, lanes.devices["device_0"]


async def test_added_task_wakes_one_slot_and_stop_wakes_all() -> None:
    lanes, lane = make_lane(4)
    slots = [asyncio.create_task(lane.wait()) for _ in range(4)]
    await asyncio.sleep(0)
    for number in (1, 2):
        lanes.place("auto").add(cast("Entry", Waiting(number)))
        await asyncio.sleep(0)
        assert sum(slot.done() for slot in slots) == number
    lane.wake()
    await asyncio.wait_for(asyncio.gather(*slots), 5)


async def test_cancelled_slot_is_not_woken() -> None:
    lanes, lane = make_lane(2)
    stays, leaves = asyncio.create_task(lane.wait()), asyncio.create_task(lane.wait())
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    lanes.place("auto").add(cast("Entry", Waiting(1)))
    await asyncio.wait_for(stays, 5)


class Running(Waiting):
    """Running task as far as a lane sees it, which has run for `elapsed` seconds and may report how many are `left`."""

    def __init__(self, number: int, elapsed: float, left: float | None = None) -> None:
        super().__init__(number)
        self.time_left = lambda: left
        self.elapsed = lambda: elapsed


@pytest.mark.parametrize(
    ("slots", "ran", "running", "expected"),
    [
        (1, [], [Running(0, 1.0)], [None]),
        (1, [600.0], [Running(0, 60.0)], [540, 1140, 1740]),
        (2, [600.0], [Running(0, 0.0), Running(1, 300.0)], [300, 600]),
        (2, [600.0], [Running(0, 0.0)], [0, 600, 600]),
        # A task that runs for longer than all before has no end in sight, unless it reports one.
        (1, [600.0], [Running(0, 5000.0)], [None, None]),
        (2, [600.0], [Running(0, 5000.0), Running(1, 0.0)], [600, 1200]),
        (1, [600.0], [Running(0, 5000.0, left=900.0)], [900, 1500]),
        # The slot that becomes free first counts, and not the average of both.
        (2, [600.0], [Running(0, 0.0, left=100_000.0), Running(1, 0.0, left=300.0)], [300, 900, 1500]),
    ],
)
def test_start_is_estimated_from_recent_and_elapsed_durations(
    slots: int, ran: list[float], running: list[Running], expected: list[float | None]
) -> None:
    lanes, lane = make_lane(slots)
    for seconds in ran:
        lane.durations.add(Waiting.kind, seconds)
    lane.running = {str(index): cast("Entry", each) for index, each in enumerate(running)}
    entries = [cast("Entry", Waiting(100 + number)) for number in range(len(expected))]
    for entry in entries:
        lanes.place("auto").add(entry)
    now = time.time()
    starts = [None if (start := lanes.estimate(entry)) is None else start - now for entry in entries]
    assert starts == [None if seconds is None else pytest.approx(seconds, abs=50) for seconds in expected]


def test_remaining_time_follows_the_pace_of_the_current_loop() -> None:
    left = TimeLeft()
    seen = [left.report(n, 100, now) for n, now in ((0, 0.0), (1, 1.0), (4, 4.0), (100, 100.0))]
    assert seen == [None, None, 96.0, 0.0]
    assert [left.report(n, 100, now) for n, now in ((0, 160.0), (50, 165.0))] == [None, 5.0], "a second loop begins its own count"
    assert left.report(51, None, 170.0) is None
