"""Damage of the history's file: bytes of single rows, the schema, the write-ahead log, and files of other programs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import insights
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import FailureKind, OutputItem, Task, TaskOutput, TaskState
from tests.runtime.history_support import execute, known, make_task, moved, opened, rows, states
from tests.runtimes import cell, runtime_in, submit, until

COMPLETED, PENDING = TaskState.COMPLETED, TaskState.PENDING
NOT_UTF_8 = "CAST(replace(CAST({0} AS BLOB), CAST('compute' AS BLOB), X'66FF66') AS TEXT)"
BROKEN = "substr({0}, 1, length({0}) / 2)"
ANOTHER_TYPE = "'[1]'"

pytestmark = pytest.mark.usefixtures("quick_retries")


def spoil(folder: Path, query: str) -> None:
    """Execute a statement as another program would."""
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite3", isolation_level=None)) as connection:
        connection.execute(query)


def output_of(task: Task) -> TaskOutput:
    return TaskOutput(task_id=task.task_id, items=[OutputItem(output_type="stream", name="stdout", text="compute")], next=1)


@pytest.mark.parametrize("damage", [NOT_UTF_8, BROKEN, ANOTHER_TYPE])
async def test_damaged_rows_are_shown_as_damaged_and_others_work(tmp_path: Path, damage: str) -> None:
    tasks = [make_task(COMPLETED, name=f"compute {index}") for index in range(3)]
    bad, without_parameters, good = tasks
    async with opened(tmp_path, retention_tasks=2) as history:
        for task in tasks:
            history.put_output(task.task_id, output_of(task))
            await history.commit(task)
        for table, column, task in (("tasks", "document", bad), ("outputs", "document", bad), ("tasks", "parameters", without_parameters)):
            key = "id" if table == "tasks" else "task_id"
            changed = damage.format(column).replace("'compute'", "'expression'") if column == "parameters" else damage.format(column)
            await execute(history, f"UPDATE {table} SET {column} = {changed} WHERE {key} = '{task.task_id}'")
        page, total, _ = await history.page(10)
        assert [task.task_id for task in page] == [good.task_id, without_parameters.task_id, bad.task_id]
        assert total == 3
        assert page[0] == good.model_copy(update={"runtime": "rt_1", "parameters": None})
        assert "damaged" in (page[2].error or "")
        assert page[2].status is COMPLETED
        assert [task.task_id for task in (await history.page(10, name="COMPUTE"))[0]] == [task.task_id for task in page]
        shown = await known(history, without_parameters.task_id)
        assert shown.parameters is None
        assert "parameters are missing" in (shown.error or "")
        output = await history.get_output(bad.task_id)
        assert output is not None
        assert "damaged" in (output.items[0].text or "")
        assert await history.get_output(good.task_id) == output_of(good)
        assert (await history.look(partial(insights.ended, begin=0, end=time.time() + 1))).number == 3
        assert await history.sweep() == 1, "the damaged row is the oldest one"
        await history.delete(without_parameters.task_id)
        assert [task.task_id for task in (await history.page(10))[0]] == [good.task_id]
        assert (history.problem, history.notice) == (None, None)


async def test_rows_with_damaged_names_are_deleted_by_retention(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_tasks=1) as history:
        tasks = [make_task(COMPLETED) for _ in range(3)]
        await history.commit_all(tasks)
        for column in ("id", "operation", "runtime", "owner"):
            await execute(history, f"UPDATE tasks SET {column} = CAST(X'74FF74' AS TEXT) WHERE id IN ('{tasks[0].task_id}', 't\ufffdt')")
        page, _, _ = await history.page(10)
        assert len(page) == 3
        assert await history.sweep() == 2
        assert [task.task_id for task in (await history.page(10))[0]] == [tasks[2].task_id]


@pytest.mark.parametrize("column", ["document", "parameters", "attempt"])
@pytest.mark.parametrize("damage", [NOT_UTF_8, BROKEN, ANOTHER_TYPE])
async def test_damaged_pending_row_of_dead_runtime_fails_alone(tmp_path: Path, column: str, damage: str) -> None:
    tasks = [make_task(name="compute", parameters={"expression": "compute"}) for _ in range(3)]
    async with opened(tmp_path, "rt_dead") as history:
        await history.commit_all(tasks)
    changed = "'\x01'" if column == "attempt" else damage.format(column)
    spoil(tmp_path, f"UPDATE tasks SET {column} = {changed} WHERE id = '{tasks[0].task_id}'")
    async with opened(tmp_path, "rt_new") as history:
        assert [task.task_id for task in history.taken] == [task.task_id for task in tasks[1:]]  # type: ignore[attr-defined]
        failed = await known(history, tasks[0].task_id)
        assert failed.status is TaskState.FAILED
        assert failed.failure is not None
        assert failed.failure.kind is FailureKind.NOT_STARTED
        assert "damaged" in failed.failure.message
        assert "submit it again" in failed.failure.message
        assert history.problem is None


def random_bytes(seed: int) -> tuple[int, bytes]:
    """Return a position in the schema page, and bytes to write there."""
    dice = random.Random(seed)
    return dice.randrange(4_000), dice.randbytes(dice.choice((1, 20, 1_000)))


HEADER = {"write version": (18, b"\3"), "no version": (60, bytes(4)), "impossible version": (60, b"\7\7\7\7"), "identity": (68, b"abcd")}


async def test_damaged_header_or_schema_page_never_prevents_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path / "intact", "rt_dead") as history:
        await history.commit_all([make_task() for _ in range(3)])
    for name, (position, content) in {**HEADER, **{str(seed): random_bytes(seed) for seed in range(4)}}.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "intact", folder)
        with (folder / "history.sqlite3").open("r+b") as file:
            file.seek(position)
            file.write(content)
        async with opened(folder, "rt_new") as history:
            task = make_task()
            await history.commit(task)
            assert task.task_id in {each.task_id for each in (await history.page(10))[0]}, name
            assert history.problem is None
            if name in HEADER:
                assert str(next(folder.glob("*.corrupt.sqlite3"))) in (history.notice or ""), name


TABLES = ["TABLE tasks", "TABLE counters", "TABLE outputs"]
AT_THE_START = [*TABLES, "TRIGGER tasks_moved", "INDEX tasks_finished"]


@pytest.mark.parametrize(("what", "running"), [*((what, True) for what in TABLES), *((what, False) for what in AT_THE_START)])
async def test_missing_part_of_schema_counts_as_damage(tmp_path: Path, what: str, running: bool) -> None:
    if not running:
        async with opened(tmp_path) as history:
            await history.commit(make_task())
        spoil(tmp_path, f"DROP {what}")
    async with opened(tmp_path, "rt_2") as history:
        if running:
            spoil(tmp_path, f"DROP {what}")
        task = make_task(COMPLETED)
        history.put_output(task.task_id, output_of(task))
        await history.commit(task)
        assert [each.task_id for each in (await history.page(10))[0]] == [task.task_id]
        (aside,) = tmp_path.glob("*.corrupt.sqlite3")
        assert str(aside) in (history.notice or "")
        assert history.problem is None


@pytest.mark.parametrize("version", [0, 3, 77])
async def test_database_of_another_program_is_moved_aside(tmp_path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE urls (url TEXT)")
        connection.execute("INSERT INTO urls VALUES ('https://example.org')")
        connection.execute(f"PRAGMA user_version = {version}")
    content = (tmp_path / "history.sqlite3").read_bytes()
    async with opened(tmp_path) as history:
        await history.commit(make_task())
        assert history.problem is None
        (aside,) = tmp_path.glob("*.corrupt.sqlite3")
        assert str(aside) in (history.notice or "")
        assert aside.read_bytes() == content
    (identity,) = rows(tmp_path, "PRAGMA application_id")[0]
    assert identity != 0


@pytest.mark.parametrize("replaced", [False, True])
async def test_write_ahead_log_deleted_during_use_is_saved(tmp_path: Path, replaced: bool) -> None:
    async with opened(tmp_path, "rt_1") as history, opened(tmp_path, "rt_2") as other:
        tasks = [make_task() for _ in range(4)]
        await history.commit(tasks[0])
        await other.commit(tasks[1])
        await history.get(tasks[0].task_id)
        (tmp_path / "history.sqlite3-wal").unlink()
        if replaced:  # by a process that opened the file since
            (tmp_path / "history.sqlite3-wal").touch(0o600)
        assert len((await history.page(10))[0]) == 2
        await history.commit(tasks[2])
        await other.commit(tasks[3])
        for each in (history, other):
            assert {task.task_id for task in (await each.page(10))[0]} == {task.task_id for task in tasks}
            assert (each.problem, each.notice) == (None, None)
    assert states(tmp_path) == {task.task_id: "pending" for task in tasks}
    assert not list(tmp_path.glob("*.corrupt*"))


async def test_live_tasks_survive_damage_of_the_file(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with runtime_in(tmp_path / "data") as runtime:
        wait = f"import os, time\nwhile not os.path.exists({os.fspath(mark)!r}): time.sleep(0.02)"
        ended = await submit(runtime, "compute", {"expression": "1 + 1"})
        await runtime.tasks.wait(ended, 30)
        ids = [await cell(runtime, wait, wait=False)]
        ids += [await submit(runtime, "compute", {"expression": "1 + 1"}, wait=False) for _ in range(4)]
        await until(lambda: states(tmp_path / "data")[ids[0]] == "running", what="the first task runs")
        spoil(tmp_path / "data", "DROP TABLE tasks")
        extra = await submit(runtime, "compute", {"expression": "1 + 1"}, wait=False)
        await until(lambda: set(states(tmp_path / "data")) == {ended, *ids, extra}, what="the live tasks in the new file")
        assert {task.task_id for task in (await runtime.list_tasks(TasksQuery())).tasks} == {ended, *ids, extra}
        mark.touch()
        for task_id in (*ids, extra):
            task = await runtime.tasks.wait(task_id, 30)
            assert (task.status, task.error) == (COMPLETED, None)
        assert runtime.history.problem is None
        assert any("damaged" in problem for problem in runtime.health().problems)
    assert set(states(tmp_path / "data").values()) == {"completed"}


async def test_start_goes_on_whatever_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite3").mkdir()
    history = History(Settings(data_dir=tmp_path), "rt_1")
    with pytest.raises(StorageUnavailable, match="history"):
        history.open()
    assert history.problem is not None
    task = make_task(COMPLETED, wait=True)
    history.write_behind(task.task_id, lambda: task)
    (tmp_path / "history.sqlite3").rmdir()
    await until(lambda: history.problem is None, what="the problem's end, by itself")
    assert states(tmp_path) == {task.task_id: "completed"}
    await history.commit(moved(make_task(), COMPLETED))
    await history.close()
