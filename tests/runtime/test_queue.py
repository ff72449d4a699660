from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openruntime_jupyter.errors import InvalidRequest, QueueFull, TaskConflict, UnknownDevice
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks.entry import TRANSITIONS, QueueKey, follow
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtimes import cell, ended, runtime_in, says, submit

HOLD = "import time\nprint('holding', flush=True)\nwhile True: time.sleep(0.01)"


async def busy(runtime: Runtime) -> str:
    """Keep the only slot busy until it is cancelled."""
    task_id = await cell(runtime, HOLD)
    await says(runtime, task_id, "holding")
    return task_id


async def order_of(runtime: Runtime, ids: list[str]) -> list[str]:
    """The ids in the order in which the tasks started."""
    tasks = [await ended(runtime, task_id) for task_id in ids]
    return [task.task_id for task in sorted(tasks, key=lambda task: epoch(task.started_at) or 0)]


async def test_with_one_slot_busy_tasks_of_1_5_10_5_run_as_10_5_5_1(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await busy(runtime)
        one, five, ten, other_five = [await submit(runtime, "call", priority=priority) for priority in (1, 5, 10, 5)]
        positions = [(await runtime.tasks.get(task_id)).position for task_id in (one, five, ten, other_five)]
        assert positions == [4, 2, 1, 3]
        await runtime.cancel(holder)
        assert await order_of(runtime, [one, five, ten, other_five]) == [ten, five, other_five, one]


async def test_what_is_next_is_listed_first_and_paged_and_no_filter_goes_with_it(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await busy(runtime)
        ids = [await submit(runtime, "call", priority=priority) for priority in (1, 5, 10, 5, 9)]
        wanted = [ids[index] for index in (2, 4, 1, 3, 0)]
        pages = [await runtime.list_tasks(2, offset=offset, order="next") for offset in (0, 2, 4, 6)]
        assert [task.task_id for page in pages for task in page.tasks] == wanted
        assert [task.position for page in pages for task in page.tasks] == [1, 2, 3, 4, 5]
        assert {page.total_count for page in pages} == {5}
        assert (await runtime.list_tasks(states=[TaskState.PENDING], order="next")).tasks[0].parameters is None
        for unfit in ({"before": holder}, {"operation": "call"}, {"owner": "me"}, {"states": [TaskState.RUNNING]}):
            with pytest.raises(InvalidRequest, match="`limit` and `offset`"):
                await runtime.list_tasks(order="next", **unfit)
        await runtime.cancel(holder)


async def test_a_changed_priority_changes_the_order_and_keeps_the_submission_time(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await busy(runtime)
        first, second, third = [await submit(runtime, "call", priority=5) for _ in range(3)]
        before = (await runtime.tasks.get(third)).submitted_at
        moved = await runtime.reprioritise(third, 9)
        assert (moved.priority, moved.position, moved.submitted_at) == (9, 1, before)
        await runtime.reprioritise(first, 1)
        await runtime.cancel(holder)
        assert await order_of(runtime, [first, second, third]) == [third, second, first]


async def test_the_priority_of_a_running_or_ended_task_is_a_conflict(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await busy(runtime)
        with pytest.raises(TaskConflict, match="running"):
            await runtime.reprioritise(holder, 10)
        await runtime.cancel(holder)
        with pytest.raises(TaskConflict, match="cancelled"):
            await runtime.reprioritise(holder, 10)


async def test_a_task_of_priority_1_gets_through_a_steady_stream_of_tens(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, aging_seconds=0.02) as runtime:
        holder = await busy(runtime)
        stream = [await submit(runtime, "call", priority=10) for _ in range(20)]
        low = await submit(runtime, "call", priority=1)
        await runtime.cancel(holder)
        while not (await runtime.tasks.get(low)).status.terminal:
            stream.append(await submit(runtime, "call", priority=10))
            await runtime.tasks.wait(stream[-10])
            assert len(stream) < 5000, "5,000 tasks of priority 10 passed the one of priority 1"
        started = epoch((await runtime.tasks.get(low)).started_at) or 0
        others = [await ended(runtime, task_id) for task_id in stream]
        passed = [task for task in others if (epoch(task.submitted_at) or 0) < started < (epoch(task.started_at) or 0)]
        assert passed, "no task of priority 10 was waiting when it started, so nothing was shown"


def test_without_aging_worth_speaking_of_the_tens_go_first(tmp_path: Path) -> None:
    assert QueueKey.of(100.0, 10, 30.0, 2) < QueueKey.of(0.0, 1, 30.0, 1)
    assert QueueKey.of(271.0, 10, 30.0, 2) > QueueKey.of(0.0, 1, 30.0, 1)
    assert QueueKey.of(5.0, 5, 30.0, 1) < QueueKey.of(5.0, 5, 30.0, 2)


async def test_one_task_more_than_may_wait_is_refused_with_the_bound(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=2) as runtime:
        holder = await busy(runtime)
        waiting = [await submit(runtime, "call") for _ in range(2)]
        with pytest.raises(QueueFull, match="max_pending") as refused:
            await submit(runtime, "call")
        assert refused.value.retry_after
        await runtime.cancel(holder)
        assert [(await ended(runtime, task_id)).status for task_id in waiting] == ["completed"] * 2


async def test_auto_and_gpu_fall_to_the_cpu_and_say_so_and_an_unknown_device_is_refused(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        for preference in ("auto", "gpu", "cpu", "device_0"):
            task = await ended(runtime, await submit(runtime, "call", device_preference=preference))
            assert task.result is not None
            assert task.result.device_used == task.device_used == "device_0"
        assert runtime.devices()[0].type == "cpu", "this test is for machines without a GPU"
        with pytest.raises(UnknownDevice, match="device_0"):
            await submit(runtime, "call", device_preference="device_7")


async def test_a_waiting_task_has_an_estimate_once_something_has_run(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await ended(runtime, await cell(runtime, "import time; time.sleep(0.2)"))
        # It says itself how long it will take, so that it can't outrun the one before on a slow machine.
        holder = await cell(runtime, f"import openruntime_jupyter as o; o.progress(1, 1000)\n{HOLD}")
        await says(runtime, holder, "holding")
        waiting = [await runtime.tasks.get(await submit(runtime, "call")) for _ in range(3)]
        starts = [epoch(task.estimated_start) for task in waiting]
        assert all(starts)
        assert starts == sorted(starts, key=lambda start: start or 0)
        await runtime.cancel(holder)


async def test_two_slots_run_two_tasks_at_once(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        holders = [await busy(runtime), await busy(runtime)]
        assert runtime.metrics().active_tasks == 2
        assert (runtime.devices()[0].status, runtime.devices()[0].running) == ("busy", 2)
        await asyncio.gather(*(runtime.cancel(holder) for holder in holders))
        assert runtime.metrics().active_tasks == 0


def test_no_state_follows_a_terminal_one_and_every_other_can_end() -> None:
    for state, following in TRANSITIONS.items():
        if state.terminal:
            assert not following
        else:
            assert any(end.terminal for end in following)
    with pytest.raises(TaskConflict):
        follow(TaskState.CANCELLED, TaskState.COMPLETED)
    assert follow(TaskState.PENDING, TaskState.RUNNING) is TaskState.RUNNING


async def test_a_fault_of_ours_at_a_tasks_end_costs_neither_its_waiter_nor_the_lane_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("broken")

    async with runtime_in(tmp_path) as runtime:
        await ended(runtime, await submit(runtime, "call"))
        for owner, name in ((runtime.arrays, "release"), (runtime.tasks, "record"), (runtime._admission, "blocked_reason")):
            with monkeypatch.context() as patch:
                task_id = await cell(runtime, "print('in', flush=True)\nimport time; time.sleep(600)")
                await says(runtime, task_id, "in")
                patch.setattr(owner, name, breaks)
                task = await asyncio.wait_for(runtime.cancel(task_id), 10)
                assert task.status in ("failed", "cancelled")
            assert (await ended(runtime, await submit(runtime, "call"))).status == "completed", name
    assert "broken" in caplog.text


async def test_a_task_that_is_moved_and_cancelled_at_once_ends_once(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await busy(runtime)
        subscription, _ = runtime.bus.subscribe()
        waiting = [await submit(runtime, "call", wait=False) for _ in range(10)]
        for task_id in waiting:
            await asyncio.gather(runtime.reprioritise(task_id, 9), runtime.cancel(task_id))
        subscription.close()
        ends = [event.body["data"]["task_id"] async for event in subscription if event.body["data"]["status"] == "cancelled"]
        assert sorted(ends) == sorted(waiting)
        assert runtime.metrics_service.counters.ended["cancelled", "call"] == len(waiting)
        await runtime.cancel(holder)


async def test_no_state_is_told_before_it_is_on_disk_and_each_end_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with runtime_in(tmp_path) as runtime:
        commit, told, stored = runtime.history.commit, [], []

        async def cooperatively(task: Task) -> None:
            await asyncio.sleep(0.15)  # longer than updates are gathered
            await commit(task)
            stored.append((task.task_id, task.status))

        monkeypatch.setattr(runtime.history, "commit", cooperatively)
        subscription, _ = runtime.bus.subscribe()

        async def listen() -> None:
            async for event in subscription:
                data = event.body["data"]
                assert (data["task_id"], data["status"]) in stored, f"{data['status']} was told and is not stored"
                told.append((data["task_id"], data["status"]))

        listening = asyncio.ensure_future(listen())
        ids = [await submit(runtime, "call", wait=False) for _ in range(5)]
        for task_id in ids:
            while not (task := await runtime.tasks.get(task_id)).status.terminal:
                await asyncio.sleep(0)
            assert (task_id, task.status) in stored, "who asks is told no sooner"
            assert (await runtime.tasks.output(task_id)).finished
        subscription.close()
        await listening
        assert sorted(each for each in told if each[1] == "completed") == sorted((task_id, "completed") for task_id in ids)
