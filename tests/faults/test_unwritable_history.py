"""Lists while the history cannot be written or read: they contain living and unwritten tasks."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtime.history_support import as_it_is, fill_disk, make_task, moved, opened
from tests.runtimes import cell, runtime_in, submit, until

COMPLETED, PENDING, RUNNING = TaskState.COMPLETED, TaskState.PENDING, TaskState.RUNNING

pytestmark = pytest.mark.usefixtures("quick_retries")


async def fill(history: History) -> None:
    """Make the disk look full, and wait until the history has noticed it."""
    fill_disk(history)
    while history.problem is None:
        try:
            await history.commit(make_task(COMPLETED, operation="filler", parameters={"filler": "x" * 4_000}))
        except StorageUnavailable:
            break
    assert history.problem is not None


def write_behind(history: History, task: Task) -> None:
    history.write_behind(task.task_id, as_it_is(task))


async def test_lists_have_unwritten_tasks_in_order_with_filters_and_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        old = [make_task(RUNNING, name="old", owner="ann") for _ in range(3)]
        await history.commit_all(old)
        await fill(history)
        first = moved(old[0], COMPLETED)
        new = [make_task(RUNNING, name="new", owner="ann", wait=True) for _ in range(4)]
        for task in (*new, first):
            write_behind(history, task)
        expected = [task.task_id for task in reversed([first, old[1], old[2], *new])]
        page, total, _ = await history.page(100, owner="ann")
        assert ([task.task_id for task in page], total) == (expected, 7)
        assert page[-1].status is COMPLETED
        assert page[-1].parameters is None
        for states, ids in (([COMPLETED], [first.task_id]), ([RUNNING], expected[:-1])):
            page, total, _ = await history.page(100, owner="ann", states=states)
            assert ([task.task_id for task in page], total) == (ids, len(ids))
        assert [task.task_id for task in (await history.page(100, name="NEW"))[0]] == expected[:4]
        before: str | None = None
        for start in range(0, 7, 2):
            page, total, before = await history.page(2, before=before, owner="ann")
            assert ([task.task_id for task in page], total) == (expected[start : start + 2], 7)
            assert [task.task_id for task in (await history.page(2, offset=start, owner="ann"))[0]] == expected[start : start + 2]
        assert before is None
        fill_disk(history, False)
        await until(lambda: history.problem is None, what="the problem's end")
        assert [task.task_id for task in (await history.page(100, owner="ann"))[0]] == expected


async def test_every_list_has_living_tasks_while_the_file_cannot_be_read(tmp_path: Path) -> None:
    data, mark = tmp_path / "data", tmp_path / "mark"
    async with runtime_in(data) as runtime:
        running = await cell(runtime, f"import os, time\nwhile not os.path.exists({os.fspath(mark)!r}): time.sleep(0.02)", wait=False)
        await until(lambda: runtime.lanes.running == 1, what="the first task runs")
        waiting = [await submit(runtime, "compute", {"expression": "1 + 1"}, wait=index % 2 == 0, name="waiting") for index in range(4)]

        def fail(*_: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("disk I/O error")

        file = runtime.history._file
        for action in ("connect", "connect_for_reading", "in_place", "readable"):
            setattr(file, action, fail)
        with pytest.raises(StorageUnavailable):
            await submit(runtime, "compute", {"expression": "1 + 1"}, wait=False)
        late = await submit(runtime, "compute", {"expression": "1 + 1"}, name="waiting")
        page = await runtime.list_tasks(TasksQuery())
        assert [task.task_id for task in page.tasks] == [late, *reversed(waiting), running]
        assert page.total_count == 6
        assert (await runtime.list_tasks(TasksQuery(state=[RUNNING]))).tasks[0].task_id == running
        assert [task.task_id for task in (await runtime.list_tasks(TasksQuery(name="WAIT", limit=2))).tasks] == [late, waiting[3]]
        assert len((await runtime.list_tasks(TasksQuery(order="next"))).tasks) == 5
        assert runtime.health().status == "degraded"
        for action in ("connect", "connect_for_reading", "in_place", "readable"):
            delattr(file, action)
        mark.touch()
        await until(lambda: runtime.history.problem is None, what="the problem's end")
        for task_id in (*waiting, late):
            assert (await runtime.tasks.wait(task_id, 30)).status is COMPLETED
        assert (await runtime.list_tasks(TasksQuery(state=[COMPLETED]))).total_count == 6


async def test_newest_first_is_the_order_of_submission_after_clock_was_set_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        tasks = [make_task(COMPLETED, seconds=2_000_000_000 - 100 * index) for index in range(4)]
        for task in tasks:
            await history.commit(task)
        newest = [task.task_id for task in reversed(tasks)]
        assert [task.task_id for task in (await history.page(10))[0]] == newest
        page, _, before = await history.page(2)
        assert [task.task_id for task in page] == newest[:2]
        assert [task.task_id for task in (await history.page(2, before=before))[0]] == newest[2:]
