"""History with a full, locked, read-only or damaged file, or one of a newer release. Uses real SQLite and real faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import store
from openruntime_jupyter.runtime.storage.schema import MIGRATIONS
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import TaskOutput, TaskState
from tests.runtime.history_support import Child, as_it_is, child, fill_disk, known, make_task, moved, opened, rows, states
from tests.runtimes import until

COMPLETED = TaskState.COMPLETED
FILLER = {"filler": "x" * 20_000}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the retry pause to a tenth, to save time."""
    assert store.RETRY_SECONDS == 1.0
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.1)


async def fill(history: History) -> None:
    """Stop the file from growing, and fill its free pages."""
    fill_disk(history)
    for _ in range(1_000):
        try:
            await history.commit(make_task(parameters=FILLER))
        except StorageUnavailable:
            break
    else:
        raise AssertionError("the disk did not get full")


async def test_full_disk_rejects_commits_with_advice(history: History, tmp_path: Path) -> None:
    await history.commit(make_task())
    await fill(history)
    with pytest.raises(StorageUnavailable, match="is full: free some space") as caught:
        await history.commit(make_task(parameters=FILLER))
    assert history.problem == str(caught.value)
    assert str(tmp_path) in history.problem
    assert caught.value.retry_after is not None
    fill_disk(history, False)
    await until(lambda: history.problem is None, what="the problem's end, by itself")
    await history.commit(make_task(parameters=FILLER))


async def test_full_disk_keeps_pending_writes_until_space_is_free(history: History, tmp_path: Path) -> None:
    early = make_task(parameters=FILLER)
    await history.commit(early)
    await fill(history)
    file = tmp_path / "payloads" / "file"
    file.write_bytes(b"in a file")
    os.utime(file, (1, 1))
    late = [moved(make_task(wait=True, parameters=FILLER), TaskState.RUNNING) for _ in range(30)]
    for task in late:
        history.write_behind(task.task_id, as_it_is(task))
        history.put_output(task.task_id, TaskOutput(task_id=task.task_id, items=[], next=7))
        history.put_payload(task.task_id, "cloudpickle", b"p" * 10_000 if task is not late[0] else file)
    await asyncio.sleep(0.3)
    assert not states(tmp_path).keys() & {task.task_id for task in late}
    assert file.stat().st_mtime > 1, "the sweep does not treat it as an orphan"
    assert history.problem is not None
    # Pending records can be read, and the newest versions are written.
    late[:] = [moved(task, COMPLETED) for task in late]
    for task in late:
        assert await history.get_payload(task.task_id) == (file if task is late[0] else b"p" * 10_000, "cloudpickle")
        history.write_behind(task.task_id, as_it_is(task))
        assert await history.get(task.task_id) == task
    fill_disk(history, False)
    await until(lambda: history.problem is None, what="the problem's end, by itself")
    await until(lambda: {states(tmp_path).get(task.task_id) for task in late} == {"completed"}, what="the newest of each")
    for task in late:
        assert (await history.get_payload(task.task_id)) is not None
        output = await history.get_output(task.task_id)
        assert output is not None
        assert output.next == 7


async def test_full_disk_still_stores_small_records(history: History, tmp_path: Path) -> None:
    small = [make_task() for _ in range(3)]
    for task in small:
        await history.commit(task)
    await fill(history)
    results = await asyncio.gather(
        *(history.commit(moved(task, COMPLETED)) for task in small),
        history.commit(make_task(parameters={"filler": "x" * 1_000_000})),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None)] * 3 + [StorageUnavailable]
    assert {states(tmp_path)[task.task_id] for task in small} == {"completed"}


async def test_payload_that_does_not_fit_does_not_block_final_record(history: History, tmp_path: Path) -> None:
    task = make_task()
    await history.commit(task)
    await fill(history)
    history.put_payload(task.task_id, "cloudpickle", b"p" * 1_000_000)
    await history.commit(moved(task, COMPLETED))
    assert states(tmp_path)[task.task_id] == "completed"
    assert rows(tmp_path, "SELECT * FROM payloads") == []
    assert history.problem is not None
    fill_disk(history, False)
    await until(lambda: history.problem is None)
    assert rows(tmp_path, "SELECT size FROM payloads") == [(1_000_000,)]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Child]:
    """Hold SQLite's write lock in another process."""
    with child("locks_database", folder) as process:
        assert process.receive() == "locked"
        yield process


async def test_locked_file_is_reported_and_writing_resumes(history: History, tmp_path: Path) -> None:
    early, late = make_task(), make_task(COMPLETED)
    await history.commit(early)
    # Busy timeout of the writer's connection in milliseconds.
    await history._write(lambda connection: connection.execute("PRAGMA busy_timeout = 200").fetchall())
    with locked(tmp_path) as process:
        history.write_behind(late.task_id, lambda: late)
        with pytest.raises(StorageUnavailable, match="locked"):
            await history.commit(make_task())
        assert "end it, or wait" in (history.problem or "")
        await known(history, early.task_id)  # reading still works
        await history.page(10)  # it does not wait for the lock, which is released later
        process.send("go")
        assert process.receive() == "free"
        await until(lambda: history.problem is None, what="the problem's end, by itself")
    assert states(tmp_path)[late.task_id] == "completed"


async def test_commit_waits_for_a_short_lock(history: History, tmp_path: Path) -> None:
    with locked(tmp_path) as process:
        commit = asyncio.create_task(history.commit(make_task()))
        await asyncio.sleep(0.3)
        assert not commit.done()
        process.send("go")
        await asyncio.wait_for(commit, 60)
    assert history.problem is None


async def test_close_keeps_deadline_while_file_is_locked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(Settings(data_dir=tmp_path), "rt_1")
    history.open()
    task = make_task(COMPLETED)
    with locked(tmp_path):
        history.write_behind(task.task_id, lambda: task)
        await history.close(0.5)  # it ends before the lock is released
        assert "still busy" in caplog.text
        assert (tmp_path / "runtimes" / "rt_1.lock").exists(), "it may still write, so it counts as alive"
    # The lock is released, so the pending records are written.
    await until(lambda: not history._writer.alive, what="the writer's end")
    assert states(tmp_path) == {task.task_id: "completed"}
    history._lock.release()


async def test_missing_data_folder_is_reported_and_used_once_writable(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.write_text("a file in the way")
    history = History(Settings(data_dir=place), "rt_1")
    with pytest.raises(StorageUnavailable, match="writable"):
        history.open()
    assert history.problem is not None
    with pytest.raises(StorageUnavailable):
        await history.commit(make_task())
    with pytest.raises(StorageUnavailable):
        await history.page(10)
    late = make_task(COMPLETED, wait=True)
    history.write_behind(late.task_id, lambda: late)
    assert await history.get(late.task_id) == late
    place.unlink()
    await until(lambda: history.problem is None, what="the problem's end, by itself")
    assert states(place) == {late.task_id: "completed"}
    assert (place / "runtimes" / "rt_1.lock").exists(), "its runtime lock exists before its first record"
    await history.close()


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"This is no database. " * 10)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite_the_middle(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("damage", [spoil_header, cut, overwrite_the_middle])
async def test_damaged_file_is_moved_aside_and_replaced(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as history:
        await asyncio.gather(*(history.commit(make_task(COMPLETED)) for _ in range(300)))
        assert history.notice is None
    path = tmp_path / "history.sqlite3"
    damage(path)
    content = path.read_bytes()
    async with opened(tmp_path, "rt_2") as history:
        task = make_task()
        await history.commit(task)
        assert history.problem is None
        assert (await history.page(10))[1] == 1
        assert "damaged" in (history.notice or "")
    aside = list(tmp_path.glob("history-*.corrupt.sqlite3"))
    assert len(aside) == 1
    assert aside[0].read_bytes() == content, "its content is unchanged"
    assert aside[0].stat().st_mode & 0o777 == 0o600
    assert caplog.text.count("The history was damaged") == 1
    assert str(aside[0]) in caplog.text


@pytest.mark.parametrize("who", ["writer", "reader"])
async def test_damage_during_use_is_repaired_and_the_query_repeated(tmp_path: Path, who: str) -> None:
    async with opened(tmp_path, "rt_1") as history, opened(tmp_path, "rt_2") as other:
        old = [make_task(COMPLETED) for _ in range(300)]
        await asyncio.gather(*(history.commit(task) for task in old))
        with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        overwrite_the_middle(tmp_path / "history.sqlite3")
        mine, theirs = make_task(), make_task()
        # The first writer has valid pages in its cache; all other connections read the damaged ones.
        if who == "reader":
            assert await history.get(old[0].task_id) is None
            assert "damaged" in (history.notice or "")
            await other.commit(theirs)
        else:
            await other.commit(theirs)
            assert "damaged" in (other.notice or "")
        await history.commit(mine)
        for each in (history, other):
            assert {task.task_id for task in (await each.page(10))[0]} == {mine.task_id, theirs.task_id}
            assert each.problem is None
        outcomes = sorted((each.notice or "").split(" was ")[1].split()[0] for each in (history, other))
        assert outcomes == ["damaged", "removed"], "the other history noticed the replacement"
        assert len(list(tmp_path.glob("*.corrupt.sqlite3"))) == 1


async def test_failed_statement_is_a_problem_until_the_next_one_works_and_moves_no_intact_file(history: History, tmp_path: Path) -> None:
    def fail(error: sqlite3.Error, connection: sqlite3.Connection) -> None:
        raise error

    task = make_task()
    await history.commit(task)
    for error in (sqlite3.DatabaseError("database disk image is malformed"), sqlite3.OperationalError("disk I/O error")):
        for ask in (history._write, history._read):
            with pytest.raises(StorageUnavailable, match=str(error)):
                await ask(partial(fail, error))
        assert history.problem
    await history.page(1)
    await until(lambda: history.problem is None, what="the problem's end, by itself")
    await known(history, task.task_id)
    assert history.notice is None
    assert not list(tmp_path.glob("*.corrupt*"))


async def test_file_removed_during_use_is_created_again(history: History, tmp_path: Path) -> None:
    early = make_task()
    await history.commit(early)
    for path in tmp_path.glob("history.sqlite3*"):
        path.unlink()
    later = make_task()
    await history.commit(later)
    assert states(tmp_path) == {later.task_id: "pending"}
    await history.commit(moved(early, TaskState.RUNNING))
    assert (await known(history, early.task_id)).parameters == early.parameters, (
        "its row was missing, so it was inserted with its parameters"
    )
    assert "removed or replaced" in (history.notice or "")


def make_newer(folder: Path) -> int:
    newer = len(MIGRATIONS) + 3
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite3", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return newer


async def test_file_of_newer_release_is_unchanged_and_memory_is_used(tmp_path: Path) -> None:
    old = make_task()
    async with opened(tmp_path) as history:
        await history.commit(old)
    newer = make_newer(tmp_path)
    content = (tmp_path / "history.sqlite3").read_bytes()
    history = History(Settings(data_dir=tmp_path), "rt_2")
    with pytest.raises(StorageUnavailable, match=f"version {newer}.* up to {len(MIGRATIONS)}: upgrade it"):
        history.open()
    assert f"version {newer}" in (history.problem or "")
    with pytest.raises(StorageUnavailable, match=f"version {newer}"):
        await history.commit(make_task())
    task = make_task(COMPLETED, wait=True)
    history.write_behind(task.task_id, lambda: task)
    history.put_payload(task.task_id, "cloudpickle", b"value")
    tasks, total, _ = await history.page(10)
    assert ([one.task_id for one in tasks], total) == ([task.task_id], 1)
    assert await history.get(task.task_id) is not None
    assert await history.get(old.task_id) is None
    assert await history.get_payload(task.task_id) == (b"value", "cloudpickle")
    assert await history.remember_key(None, "k", task.task_id, "f") is None
    assert await history.sweep() == 0
    await history.delete(task.task_id)
    assert f"version {newer}" in (history.problem or ""), "it is not cleared"
    await history.close()
    assert (tmp_path / "history.sqlite3").read_bytes() == content


async def test_migration_by_newer_release_during_use_is_detected(history: History, tmp_path: Path) -> None:
    task = make_task()
    await history.commit(task)
    newer = make_newer(tmp_path)
    with pytest.raises(StorageUnavailable, match=f"version {newer}"):
        await history.commit(moved(task, COMPLETED))
    assert states(tmp_path) == {task.task_id: "pending"}
    late = make_task(COMPLETED, wait=True)
    history.write_behind(late.task_id, lambda: late)
    assert [one.task_id for one in (await history.page(10))[0]] == [late.task_id]
    assert states(tmp_path) == {task.task_id: "pending"}
    assert f"version {newer}" in (history.problem or "")
