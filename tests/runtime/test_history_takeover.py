"""Takeover of tasks of dead runtimes, by exactly one runtime. Uses real processes, killed by SIGKILL."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.schemas.tasks import FailureKind, Task, TaskState
from tests.runtime.history_support import child, make_task, moved, opened, rows, states

PENDING, RUNNING, COMPLETED = TaskState.PENDING, TaskState.RUNNING, TaskState.COMPLETED


async def leave(folder: Path, tasks: list[Task], runtime: str = "rt_dead", **settings: Any) -> None:
    """Record tasks of a runtime that then dies."""
    async with opened(folder, runtime, **settings) as history:
        await asyncio.gather(*(history.commit(task) for task in tasks))


async def taken(folder: Path, runtime: str = "rt_new", **settings: Any) -> tuple[list[Task], dict[str, Task]]:
    """Return the tasks that a new runtime takes over, and all tasks as it reads them."""
    async with opened(folder, runtime, **settings) as history:
        tasks, _, _ = await history.page(10_000)
        return history.taken, {task.task_id: task for task in tasks}  # type: ignore[attr-defined]


async def test_pending_asynchronous_tasks_of_dead_runtimes_are_taken_over(tmp_path: Path) -> None:
    tasks = [make_task(owner="ann", priority=index + 1, parameters={"index": index}) for index in range(5)]
    await leave(tmp_path, random.Random(0).sample(tasks, 5))
    ours, found = await taken(tmp_path)
    assert ours == [task.model_copy(update={"runtime": "rt_new", "here": True}) for task in tasks]
    assert {(task.runtime, task.here, task.status) for task in found.values()} == {("rt_new", True, PENDING)}


async def test_running_task_is_requeued_only_with_retries_left(tmp_path: Path) -> None:
    once = moved(make_task(retries=1), RUNNING, attempt=1, device_used="device_0", started_at="2026-01-01T00:00:00.000000Z")
    twice = moved(make_task(retries=1), RUNNING, attempt=2)
    never = moved(make_task(), RUNNING, attempt=1)
    await leave(tmp_path, [once, twice, never])
    ours, found = await taken(tmp_path)
    assert [(task.task_id, task.status, task.attempt, task.started_at, task.device_used) for task in ours] == [
        (once.task_id, PENDING, 1, None, None)
    ]
    for task in (twice, never):
        interrupted = found[task.task_id]
        assert interrupted.status is TaskState.INTERRUPTED
        assert interrupted.failure is not None
        assert interrupted.failure.kind is FailureKind.INTERRUPTED
        assert interrupted.finished_at == interrupted.timestamp > interrupted.submitted_at
        assert "submit it again" in (interrupted.error or "")
        assert interrupted.runtime == "rt_dead"


@pytest.mark.parametrize("state", [PENDING, RUNNING])
@pytest.mark.parametrize("embedded", [False, True], ids=["synchronous", "of a kernel"])
async def test_task_that_ends_with_its_runtime_is_interrupted(tmp_path: Path, state: TaskState, embedded: bool) -> None:
    task = moved(make_task(wait=not embedded, retries=5), state)
    await leave(tmp_path, [task], embedded=embedded)
    ours, found = await taken(tmp_path)
    assert ours == []
    assert found[task.task_id].status is TaskState.INTERRUPTED
    assert ("kernel" in (found[task.task_id].error or "")) == embedded


async def test_kernel_leaves_tasks_of_dead_server_to_next_server(tmp_path: Path) -> None:
    waits, runs = make_task(), moved(make_task(), RUNNING)
    await leave(tmp_path, [waits, runs])
    ours, found = await taken(tmp_path, "rt_kernel", embedded=True)
    assert ours == []
    assert found[waits.task_id].status is PENDING
    assert found[runs.task_id].status is TaskState.INTERRUPTED
    ours, _ = await taken(tmp_path, "rt_server")
    assert [task.task_id for task in ours] == [waits.task_id]


async def test_reused_process_id_does_not_keep_runtime_alive(tmp_path: Path) -> None:
    task = make_task()
    await leave(tmp_path, [task])
    (tmp_path / "runtimes" / "rt_dead.lock").write_text(json.dumps({"runtime": "rt_dead", "pid": os.getpid()}))
    ours, _ = await taken(tmp_path)
    assert [one.task_id for one in ours] == [task.task_id]
    assert not (tmp_path / "runtimes" / "rt_dead.lock").exists()


async def test_tasks_of_earlier_runtime_with_same_id_are_taken_over(tmp_path: Path) -> None:
    task = make_task()
    await leave(tmp_path, [task], "rt_same")
    ours, _ = await taken(tmp_path, "rt_same")
    assert [one.task_id for one in ours] == [task.task_id]


async def test_running_runtime_takes_over_tasks_of_later_deaths(tmp_path: Path) -> None:
    mine, waits, kernels = make_task(), make_task(), moved(make_task(), RUNNING)
    async with opened(tmp_path, "rt_1") as history:
        await history.commit(mine)
        async with opened(tmp_path, "rt_2") as other, opened(tmp_path, "rt_3", embedded=True) as kernel:
            await other.commit(waits)
            await kernel.commit(kernels)
            assert await history.take_over() == []
        ours = await history.take_over()
        assert [task.task_id for task in ours] == [waits.task_id]
        assert states(tmp_path) == {mine.task_id: "pending", waits.task_id: "pending", kernels.task_id: "interrupted"}
        await history.commit(moved(waits, COMPLETED))


async def test_task_taken_over_by_another_runtime_is_not_overwritten(tmp_path: Path) -> None:
    """The lock file of a running runtime is removed manually. The runtime must detect the takeover before it runs the task."""

    waits, behind = make_task(), make_task()
    async with opened(tmp_path, "rt_1") as history:
        await history.commit(waits)
        await history.commit(behind)
        (tmp_path / "runtimes" / "rt_1.lock").unlink()
        async with opened(tmp_path, "rt_2") as other:
            assert len(other.taken) == 2  # type: ignore[attr-defined]
            with pytest.raises(TaskConflict, match="taken over by the runtime rt_2"):
                await history.commit(moved(waits, RUNNING))
            history.write_behind(behind.task_id, lambda: moved(behind, COMPLETED))
            await history.page(1)
            assert set(states(tmp_path).values()) == {"pending"}
            await other.commit(moved(waits, RUNNING))
            with pytest.raises(TaskConflict, match="taken over"):
                await history.commit(moved(waits, COMPLETED))
            assert states(tmp_path)[waits.task_id] == "running"


async def test_acknowledged_commits_survive_kill_9(tmp_path: Path) -> None:
    order = {"pending": 0, "running": 1, "completed": 2}
    chance = random.Random(1)
    survived = 0
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        with child("commits", folder, "rt_dead") as process:
            process.receive()
            time.sleep(chance.uniform(0.02, 0.3))
            process.process.kill()
            lines = [line.split() for line in process.rest() if line.count(" ") == 1]
        acknowledged = {task_id: state for task_id, state in lines if state in order}
        before = states(folder)
        assert acknowledged
        survived += len(acknowledged)
        for task_id, state in acknowledged.items():
            assert order[before[task_id]] >= order[state], f"{task_id} was acknowledged as {state} and is {before[task_id]}"
        payloads = dict(rows(folder, "SELECT task_id, data FROM payloads"))
        assert all(payloads.get(task_id) == task_id.encode() for task_id, state in before.items() if state == "completed")
        ours, found = await taken(folder)
        # All have a retry left, so pending and running tasks are queued again, and completed ones are unchanged.
        assert {task.task_id for task in ours} == {task_id for task_id, state in before.items() if state != "completed"}
        assert {task_id: str(task.status) for task_id, task in found.items()} == {
            task_id: "completed" if state == "completed" else "pending" for task_id, state in before.items()
        }
    assert survived > 30


async def test_concurrently_started_runtimes_never_take_the_same_task(tmp_path: Path) -> None:
    doubled: list[str] = []
    shares = Counter[int]()
    with child("takes") as first, child("takes") as second, child("takes") as third:
        takers = (first, second, third)
        for process in takers:
            assert process.receive() == "ready"
        for attempt in range(6):
            folder = tmp_path / str(attempt)
            tasks = [make_task() for _ in range(20)]
            await leave(folder, tasks)
            for number, process in enumerate(takers):
                process.send(f"{folder} rt_{number}")
            answers = [json.loads(process.receive()) for process in takers]
            found = Counter(task_id for answer in answers for task_id in answer)
            doubled += [task_id for task_id, times in found.items() if times > 1]
            shares.update(number for number, answer in enumerate(answers) if answer)
            assert set(found) == {task.task_id for task in tasks}
            assert set(states(folder).values()) == {"completed"}
    assert doubled == []
    assert len(shares) > 1, f"only one of them ever took a task: {shares}"


async def test_takeover_is_atomic(tmp_path: Path) -> None:
    """If a runtime is killed during takeover, the next one takes over all tasks intact."""
    tasks = [make_task() for _ in range(2_000)]
    folder = tmp_path / "history"

    await leave(folder, tasks)
    chance = random.Random(2)
    for number in range(3):
        with child("takes") as process:
            process.receive()
            process.send(f"{folder} rt_{number}")
            time.sleep(chance.uniform(0.0, 0.15))
    left = states(folder)
    assert set(left) == {task.task_id for task in tasks}
    owners = {runtime for (runtime,) in rows(folder, "SELECT DISTINCT runtime FROM tasks WHERE finished IS NULL")}
    assert len(owners) <= 1
    ours, _ = await taken(folder)
    assert {task.task_id for task in ours} == {task_id for task_id, state in left.items() if state == "pending"}
    assert all(task.parameters == {"expression": "a + b"} for task in ours)
