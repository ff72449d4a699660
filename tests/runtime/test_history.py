"""Task history: records, outputs, payloads, keys, and their guards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import Stopping, TaskConflict
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import conversations, queries, writer
from openruntime_jupyter.runtime.storage.rows import record_of
from openruntime_jupyter.runtime.storage.schema import MIGRATIONS, migrate
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import OutputItem, Payload, Progress, Task, TaskOutput, TaskResult, TaskState
from tests.runtime.history_support import as_it_is, execute, known, make_task, moved, opened, rows, states
from tests.runtimes import until

PENDING, RUNNING, COMPLETED, FAILED = TaskState.PENDING, TaskState.RUNNING, TaskState.COMPLETED, TaskState.FAILED


def full_task() -> Task:
    """Return a task with every field set."""
    result = TaskResult(
        execution_time=0.5,
        device_used="device_0",
        output={"nothing": None, "list": [1, 2.5, "é"]},
        payload=Payload(size=3, encoding="cloudpickle"),
    )
    return make_task(
        COMPLETED,
        owner="ann",
        name="mine",
        priority=7,
        attempt=1,
        retries=2,
        started_at="2026-01-01T00:00:00.000001Z",
        execution_time=0.5,
        progress=Progress(n=1, total=2, message="half"),
        result=result,
        device_used="device_0",
        parameters={"deep": {"list": [None, {"x": "\ud800 alone"}]}},
    )


async def test_committed_task_round_trips(tmp_path: Path) -> None:
    task = full_task()
    async with opened(tmp_path) as history:
        await history.commit(task)
        assert states(tmp_path) == {task.task_id: "completed"}, "it is on disk when commit returns"
        assert await history.get(task.task_id) == task.model_copy(update={"runtime": "rt_1", "here": True})
        assert await history.get("task_none") is None
    async with opened(tmp_path, "rt_2") as history:
        assert await history.get(task.task_id) == task.model_copy(update={"runtime": "rt_1", "here": False})


async def test_record_has_parameters_once_and_no_transient_fields(tmp_path: Path) -> None:
    task = make_task(position=3, waiting_for="memory", estimated_start="2026-01-01T00:00:00.000001Z")
    async with opened(tmp_path) as history:
        await history.commit(task)
        await history.commit(moved(task, RUNNING, parameters={"changed": True}))
        found = await known(history, task.task_id)
        assert (found.position, found.waiting_for, found.estimated_start) == (None, None, None)
        assert found.parameters == {"expression": "a + b"}
        assert (await history.page(10))[0][0].parameters is None
    assert "a + b" not in rows(tmp_path, "SELECT document FROM tasks")[0][0]


async def test_write_behind_describes_task_when_written(history: History, tmp_path: Path) -> None:
    described: list[TaskState] = []
    task = make_task(wait=True)

    def describe() -> Task:
        described.append(task.status)
        return task

    for state in (PENDING, RUNNING, COMPLETED):
        task = moved(task, state)
        history.write_behind(task.task_id, describe)
    await until(lambda: states(tmp_path), what="the record")
    assert described == [COMPLETED], "three changes were coalesced into one"
    found = await known(history, task.task_id)
    assert found.parameters == {"expression": "a + b"}


async def test_reads_see_pending_writes(history: History, tmp_path: Path) -> None:
    task = make_task(COMPLETED, wait=True)
    output = TaskOutput(
        task_id=task.task_id, items=[OutputItem(output_type="stream", name="stdout", text="hello\n")], next=1, finished=True
    )
    history.write_behind(task.task_id, lambda: task)
    history.put_output(task.task_id, output)
    history.put_payload(task.task_id, "cloudpickle", b"\0payload")
    assert await history.get(task.task_id) == task
    assert await history.get_output(task.task_id) == output
    assert await history.get_payload(task.task_id) == (b"\0payload", "cloudpickle")
    assert not states(tmp_path), "none of that was on disk yet"
    tasks, total, before = await history.page(10)
    assert ([one.task_id for one in tasks], total, before) == ([task.task_id], 1, None)
    assert await history.get_output(task.task_id) == output
    assert await history.get_payload(task.task_id) == (b"\0payload", "cloudpickle")
    assert await history.get_output("task_none") is None
    assert await history.get_payload("task_none") is None


async def test_failing_describe_does_not_block_other_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = make_task(COMPLETED)
    async with opened(tmp_path) as history:
        history.write_behind("task_bad", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        history.write_behind("task_odd", lambda: good.model_copy(update={"task_id": "task_odd", "submitted_at": "yesterday"}))
        history.write_behind(good.task_id, lambda: good)
        await until(lambda: states(tmp_path), what="the good one")
        assert history.problem is None
    assert states(tmp_path) == {good.task_id: "completed"}
    assert "task_bad" in caplog.text
    assert "task_odd" in caplog.text


async def test_values_that_json_cannot_encode_are_replaced(history: History) -> None:
    output: dict[Any, Any] = {"lone": "a\ud800b", "not a number": float("nan"), "object": object(), "bytes": b"\xff", (1, 2): "key"}
    task = make_task(COMPLETED).model_copy(
        update={
            "result": TaskResult.model_construct(execution_time=1.0, device_used="device_0", output=output, payload=None),
            "error": "\udc80",
        }
    )
    shown = TaskOutput.model_construct(
        task_id=task.task_id,
        items=[OutputItem.model_construct(output_type="stream", name="stdout", text="\ud800")],
        next=1,
        truncated=False,
        finished=True,
    )
    history.put_output(task.task_id, shown)
    await history.commit(task)
    found = await known(history, task.task_id)
    assert found.status is COMPLETED
    assert found.result is not None
    assert found.result.output["lone"] == "a?b"
    read = await history.get_output(task.task_id)
    assert read is not None
    assert read.items[0].text == "?"


@pytest.mark.parametrize("late", [PENDING, RUNNING, FAILED])
async def test_terminal_state_on_disk_never_changes(tmp_path: Path, late: TaskState) -> None:
    task = make_task()
    async with opened(tmp_path) as history:
        await history.commit(task)
        await history.commit(moved(task, COMPLETED, error="first"))
        await history.commit(moved(task, COMPLETED, error="again"))
        with pytest.raises(TaskConflict, match="is completed"):
            await history.commit(moved(task, late))
        history.write_behind(task.task_id, lambda: moved(task, late))
        await history.page(1)
    assert states(tmp_path) == {task.task_id: "completed"}
    assert json.loads(rows(tmp_path, "SELECT document FROM tasks")[0][0])["error"] == "first"


async def test_rejected_commit_does_not_roll_back_its_group(history: History, tmp_path: Path) -> None:
    done = make_task(COMPLETED)
    others = [make_task() for _ in range(20)]
    await history.commit(done)
    answers = await asyncio.gather(
        *(history.commit(task) for task in others[:10]),
        history.commit(moved(done, FAILED)),
        *(history.commit(task) for task in others[10:]),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers if answer is not None] == [TaskConflict]
    assert set(states(tmp_path)) == {done.task_id, *(task.task_id for task in others)}


async def test_commits_of_one_iteration_share_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    together = writer.Writer._run_group

    def counted(self: writer.Writer, jobs: list[writer.Job]) -> list[writer.Outcome]:
        groups.append(len(jobs))
        return together(self, jobs)

    async with opened(tmp_path) as history:
        monkeypatch.setattr(writer.Writer, "_run_group", counted)
        await asyncio.gather(*(history.commit(make_task()) for _ in range(100)))
    assert groups == [100]


async def test_cancelled_commit_is_still_written(history: History, tmp_path: Path) -> None:
    task = make_task()
    commit = asyncio.create_task(history.commit(task))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    await history.commit(make_task())
    assert task.task_id in states(tmp_path)


async def test_payload_and_output_are_written_before_final_record(history: History, tmp_path: Path) -> None:
    task = make_task(COMPLETED)
    history.put_payload(task.task_id, "cloudpickle", b"value")
    history.put_output(task.task_id, TaskOutput(task_id=task.task_id, items=[], next=0))
    await history.commit(task)
    assert rows(tmp_path, "SELECT task_id, data FROM payloads") == [(task.task_id, b"value")]
    assert rows(tmp_path, "SELECT task_id FROM outputs") == [(task.task_id,)]


async def test_history_owns_payload_files(history: History, tmp_path: Path) -> None:
    task = make_task(COMPLETED)
    file = tmp_path / "payloads" / "one"
    file.write_bytes(b"large")
    history.put_payload(task.task_id, "cloudpickle", file)
    await history.commit(task)
    assert await history.get_payload(task.task_id) == (file, "cloudpickle")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="is not in"):
        history.put_payload(task.task_id, "cloudpickle", tmp_path / "elsewhere")
    await history.delete(task.task_id)
    assert not file.exists()
    assert await history.get_payload(task.task_id) is None


async def test_deleted_task_is_removed_completely_and_not_recorded_again(tmp_path: Path) -> None:
    task = make_task(COMPLETED, wait=True)
    async with opened(tmp_path) as history:
        history.write_behind(task.task_id, lambda: task)
        history.put_output(task.task_id, TaskOutput(task_id=task.task_id, items=[], next=0))
        history.put_payload(task.task_id, "cloudpickle", b"value")
        await history.delete(task.task_id)
        await history.delete(task.task_id)
        await history.delete("task_none")
        assert await history.get(task.task_id) is None
        history.write_behind(task.task_id, lambda: task)
        assert (await history.page(10))[:2] == ([], 0)
        with pytest.raises(TaskConflict, match="purged"):
            await history.commit(task)
    for table in ("tasks", "outputs", "payloads"):
        assert rows(tmp_path, f"SELECT * FROM {table}") == []


@pytest.mark.parametrize("state", [PENDING, RUNNING])
async def test_unfinished_task_cannot_be_deleted(history: History, state: TaskState) -> None:
    task = moved(make_task(wait=True), state)
    history.write_behind(task.task_id, lambda: task)
    with pytest.raises(TaskConflict, match="cancel it first"):
        await history.delete(task.task_id)
    assert await history.get(task.task_id) is not None


async def test_idempotency_key_expires_after_a_day(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await history.remember_key("ann", "k", "task_1", "f1") is None
    assert await history.remember_key("ann", "k", "task_2", "f2") == ("task_1", "f1")
    assert await history.remember_key("ben", "k", "task_3", "f3") is None
    assert await history.remember_key(None, "k", "task_4", "f4") is None
    assert await history.remember_key(None, "k", "task_5", "f5") == ("task_4", "f4")
    monkeypatch.setattr(queries, "KEY_MICROSECONDS", 0)
    assert await history.remember_key("ann", "k", "task_6", "f6") is None


async def test_key_without_recorded_task_ends_with_its_runtime(tmp_path: Path) -> None:
    recorded = make_task(COMPLETED)
    async with opened(tmp_path) as history:
        await history.commit(recorded)
        await history.remember_key(None, "done", recorded.task_id, "f")
        await history.remember_key(None, "lost", "task_lost", "f")
    async with opened(tmp_path, "rt_2") as history:
        assert await history.remember_key(None, "done", "task_new", "f") == (recorded.task_id, "f")
        assert await history.remember_key(None, "lost", "task_new", "f") is None


async def test_key_of_purged_task_is_free(history: History) -> None:
    task = make_task(COMPLETED)
    await history.remember_key("ann", "k", task.task_id, "f")
    await history.commit(task)
    await history.delete(task.task_id)
    assert await history.remember_key("ann", "k", "task_2", "f") is None
    assert await history.remember_key("ann", "k", "task_3", "f") == ("task_2", "f")


async def test_files_and_folders_are_private_with_any_umask(tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    (tmp_path / "loose").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        for name, mask in (("open", 0), ("loose", 0), ("closed", 0o777)):
            os.umask(mask)
            folder = tmp_path / name
            async with opened(folder) as history:
                await history.commit(make_task())
                found = {path.relative_to(folder).as_posix(): mode(path) for path in folder.rglob("*")}
                files = {"history.lock", "history.sqlite3", "history.sqlite3-shm", "history.sqlite3-wal", "runtimes/rt_1.lock"}
                assert found == dict.fromkeys(files, 0o600) | dict.fromkeys(("payloads", "runtimes"), 0o700)
                assert mode(folder) == 0o700
    finally:
        os.umask(before)


async def test_close_flushes_and_leaves_no_thread_or_lock(tmp_path: Path) -> None:
    others = threading.enumerate()
    tasks = [make_task(COMPLETED) for _ in range(1_200)]
    history = History(Settings(data_dir=tmp_path), "rt_1")
    history.open()
    assert (tmp_path / "runtimes" / "rt_1.lock").exists()
    for task in tasks:
        history.write_behind(task.task_id, as_it_is(task))
    await history.close()
    await history.close()
    assert set(states(tmp_path)) == {task.task_id for task in tasks}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("openruntime-history") and thread not in others]
    assert not list((tmp_path / "runtimes").iterdir())
    assert not (tmp_path / "history.sqlite3-wal").exists()


async def test_calls_after_close_raise_stopping(tmp_path: Path) -> None:
    task = make_task(COMPLETED)
    async with opened(tmp_path) as history:
        pass
    history.write_behind(task.task_id, lambda: task)
    history.put_output(task.task_id, TaskOutput(task_id=task.task_id, items=[], next=0))
    history.put_payload(task.task_id, "cloudpickle", b"")
    for call in (history.commit(task), history.get("task_1"), history.page(1), history.delete("task_1"), history.sweep()):
        with pytest.raises(Stopping, match="closed"):
            await call
    assert states(tmp_path) == {}


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_file_of_each_older_release_is_migrated(tmp_path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:version])
        connection.execute("INSERT INTO keys VALUES ('me', 'key', 'task_1', 'print', 'rt_1', 0)")
        old = make_task(COMPLETED, name="Étude"), make_task(COMPLETED)
        for task in old:
            names, values = "", [task.task_id, record_of(task, "rt_1", embedded=False).document]
            if version >= 4:
                names, values = ", title", [*values, (task.name or task.operation).casefold()]
            connection.execute(
                "INSERT INTO tasks (runtime, state, operation, submitted, finished, durable, embedded, attempt, retries, id, document"
                f"{names}) VALUES ('rt_1', 'completed', 'compute', 1, 1, 1, 0, 1, 0, {', '.join('?' * len(values))})",
                values,
            )
    async with opened(tmp_path) as history:
        assert [[task.task_id for task in (await history.page(9, name=name))[0]] for name in ("éTUDE", "Compute")] == [
            [old[0].task_id],
            [old[1].task_id],
        ]
        assert (await history.page(9, notebook="/work/a.ipynb"))[:2] == ([], 0)
        await history.commit(make_task(COMPLETED))
        assert await history.look(lambda connection: conversations.page(connection, None, 10)) == []
    assert rows(tmp_path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert rows(tmp_path, "SELECT (SELECT count(*) FROM keys), (SELECT count(*) FROM metrics)") == [(1, 0)]


def test_failed_migration_changes_nothing(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "x", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, ["CREATE TABLE first (x);", "CREATE TABLE second (x);\nCREATE TABLE first (x);"])
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


async def test_record_of_newer_release_is_read_without_unknown_fields(history: History) -> None:
    task, other, broken = full_task(), full_task(), full_task()
    for one in (task, other, broken):
        await history.commit(one)
    for one, new in ((task, "'$.colour', 1, '$.result.shade', 2"), (broken, "'$.priority', 'high'")):
        await execute(history, f"UPDATE tasks SET document = json_set(document, {new}) WHERE id = '{one.task_id}'")
    assert await history.get(task.task_id) == task.model_copy(update={"runtime": "rt_1"})
    page, _, _ = await history.page(10)
    assert [one.task_id for one in page] == [broken.task_id, other.task_id, task.task_id]
    assert page[0].status is COMPLETED
    assert "upgrade openruntime-jupyter" in (page[0].error or "")
