"""Retention of finished tasks, files and keys."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from openruntime_jupyter.runtime.storage import retention
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskState
from tests.runtime.history_support import execute, make_task, moved, opened, rows, states

DAY = 24 * 3600.0
KEEP_ALL: dict[str, Any] = {"retention_days": 0, "retention_tasks": 0, "retention_payload_bytes": 0}


def ended(days_ago: float, state: TaskState = TaskState.COMPLETED) -> Task:
    """Return a task that ended `days` days ago; tasks that ended earlier were submitted later."""
    then = time.time() - days_ago * DAY
    return make_task(state, seconds=1_600_000_000 + days_ago, finished_at=iso(then), timestamp=iso(then))


async def kept(history: History, folder: Path, tasks: list[Task]) -> tuple[int, set[int]]:
    """Return the result of a sweep, and which of `tasks` remain."""
    for task in tasks:
        await history.commit(task)
    number = await history.sweep()
    left = states(folder)
    return number, {index for index, task in enumerate(tasks) if task.task_id in left}


async def test_sweep_deletes_only_finished_tasks_over_age(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_days=30.0) as history:
        old = [ended(31, state) for state in TaskState if state.terminal]
        young = [ended(29, state) for state in TaskState if state.terminal]
        alive = [make_task(seconds=1_500_000_000), moved(make_task(seconds=1_500_000_000), TaskState.RUNNING)]
        number, left = await kept(history, tmp_path, [*old, *young, *alive])
        assert number == len(old)
        assert left == set(range(len(old), len(old) + len(young) + len(alive)))


async def test_sweep_deletes_oldest_tasks_over_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, **KEEP_ALL | {"retention_tasks": 3}) as history:
        tasks = [ended(days) for days in (5, 1, 4, 2, 3)]
        waiting = [make_task(seconds=1_500_000_000) for _ in range(10)]
        number, left = await kept(history, tmp_path, [*tasks, *waiting])
        assert number == 2
        assert left == {1, 3, 4} | set(range(5, 15))


async def test_sweep_deletes_oldest_tasks_over_payload_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, **KEEP_ALL | {"retention_payload_bytes": 2_500}) as history:
        tasks = [ended(days) for days in (9, 5, 4, 3)]
        files = [tmp_path / "payloads" / task.task_id for task in tasks]
        for task, file in zip(tasks[1:], files[1:], strict=True):
            if task is tasks[2]:
                history.put_payload(task.task_id, "cloudpickle", b"x" * 1_000)
            else:
                file.write_bytes(b"x" * 1_000)
                history.put_payload(task.task_id, "cloudpickle", file)
        number, left = await kept(history, tmp_path, tasks)
        # The oldest task has no payload, so deleting it would free nothing.
        assert (number, left) == (1, {0, 2, 3})
        assert [file.exists() for file in files] == [False, False, False, True]
        assert rows(tmp_path, "SELECT sum(size) FROM payloads") == [(2_000,)]


async def test_zero_limits_keep_everything(tmp_path: Path) -> None:
    async with opened(tmp_path, **KEEP_ALL) as history:
        tasks = [ended(10_000) for _ in range(5)]
        for task in tasks:
            history.put_payload(task.task_id, "cloudpickle", b"x" * 1_000)
        assert await kept(history, tmp_path, tasks) == (0, set(range(5)))


async def test_large_sweep_allows_writes_in_between(tmp_path: Path) -> None:
    async with opened(tmp_path, **KEEP_ALL | {"retention_tasks": 10}) as history:
        tasks = [ended(1) for _ in range(3 * retention.STEP_TASKS)]
        await asyncio.gather(*(history.commit(task) for task in tasks))
        sweep = asyncio.create_task(history.sweep())
        waits = []
        while not sweep.done():
            start = time.perf_counter()
            await history.commit(make_task())
            waits.append(time.perf_counter() - start)
        assert await sweep == len(tasks) - 10
        assert len(waits) > 3, "it was not one long transaction"


async def test_unreferenced_files_are_removed_after_an_hour(history: History, tmp_path: Path) -> None:
    folder = tmp_path / "payloads"
    for name in ("kept", "old", "young"):
        (folder / name).write_bytes(name.encode())
    for name in ("kept", "old"):
        os.utime(folder / name, (time.time() - 3_700,) * 2)
    (folder / "folder").mkdir()
    os.utime(folder / "folder", (1, 1))
    task = make_task(TaskState.COMPLETED)
    history.put_payload(task.task_id, "cloudpickle", folder / "kept")
    await history.commit(task)
    await history.sweep()
    assert sorted(path.name for path in folder.iterdir()) == ["folder", "kept", "young"]


async def test_orphaned_outputs_and_payloads_are_removed_after_an_hour(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        task = make_task(TaskState.COMPLETED)
        for task_id in (task.task_id, "task_old", "task_young"):
            history.put_output(task_id, TaskOutput(task_id=task_id, items=[], next=0))
            history.put_payload(task_id, "cloudpickle", b"x")
        await history.commit(task)
        await history.page(1)
        for table in ("outputs", "payloads"):
            await execute(history, f"UPDATE {table} SET stored = stored - {retention.HOUR + 1} WHERE task_id <> 'task_young'")
        await history.sweep()
    for table in ("outputs", "payloads"):
        assert {row[0] for row in rows(tmp_path, f"SELECT task_id FROM {table}")} == {task.task_id, "task_young"}


async def test_keys_and_deletion_traces_expire_after_a_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        for number in range(2):
            task = make_task(TaskState.COMPLETED)
            await history.commit(task)
            await history.remember_key(None, f"key {number}", task.task_id, "f")
            await history.delete(task.task_id)
            if number == 0:
                await execute(history, f"UPDATE keys SET stored = stored - {retention.DAY}")
                await execute(history, f"UPDATE gone SET deleted = deleted - {retention.DAY}")
        await history.sweep()
    assert rows(tmp_path, "SELECT key FROM keys") == [("key 1",)]
    assert rows(tmp_path, "SELECT id FROM gone") == [(task.task_id,)]


async def test_sweep_returns_free_pages_to_disk(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite3"
    async with opened(tmp_path, retention_days=1.0) as history:
        tasks = [ended(2) for _ in range(20)]
        for task in tasks:
            history.put_payload(task.task_id, "cloudpickle", b"x" * 1_000_000)
            await history.commit(task)
    large = file.stat().st_size
    assert large > 20_000_000
    async with opened(tmp_path, retention_days=1.0) as history:
        assert await history.sweep() == 20
    assert file.stat().st_size < large / 3


async def test_two_runtimes_can_sweep_concurrently(tmp_path: Path) -> None:
    async with opened(tmp_path, "rt_1", retention_days=1.0) as history, opened(tmp_path, "rt_2", retention_days=1.0) as other:
        await asyncio.gather(*(history.commit(ended(2)) for _ in range(1_200)))
        assert sum(await asyncio.gather(history.sweep(), other.sweep())) == 1_200
        assert states(tmp_path) == {}
