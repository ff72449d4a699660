"""Search of the history by name, code and parameters."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from openruntime_jupyter.operations.parameter_summary import LONGEST_TEXT, search_text
from openruntime_jupyter.runtime.storage import search
from openruntime_jupyter.runtime.storage.schema import MIGRATIONS, migrate
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtime.history_support import as_it_is, make_task, moved, opened, rows

COMPLETED, PENDING = TaskState.COMPLETED, TaskState.PENDING


async def found(history: History, text: str, **filters: Any) -> list[str]:
    """Return the ids of the tasks that a search finds, and check their number."""
    tasks, total, _ = await history.page(100, search=text, **filters)
    assert all(task.parameters is None for task in tasks)
    assert total == len(tasks)
    return [task.task_id for task in tasks]


def python(code: str, state: TaskState = COMPLETED, **fields: Any) -> Task:
    return make_task(state, operation="python", parameters={"code": code}, **fields)


async def test_search_finds_name_code_and_parameters(tmp_path: Path) -> None:
    code = python("for step in range(10):\n    Train(step)")
    named = python("pass", name="train the model")
    given = make_task(COMPLETED, operation="matrix_multiply", parameters={"size": 1024, "dtype": "float16"})
    async with opened(tmp_path) as history:
        for task in (code, named):
            await history.commit(task)
        history.write_behind(given.task_id, as_it_is(given))
        assert await found(history, "TRAIN") == [named.task_id, code.task_id]
        assert await found(history, "range(10):\n") == [code.task_id]
        assert await found(history, "size=1024") == [given.task_id]
        assert await found(history, "python") == [code.task_id]
        assert await found(history, "train", name="train") == [named.task_id]
        assert await found(history, "train", states=[PENDING]) == []
        assert await found(history, "100%") == []


async def test_pending_task_of_another_runtime_is_found_by_code(tmp_path: Path) -> None:
    async with opened(tmp_path, "rt_1") as history, opened(tmp_path, "rt_2") as other:
        task = python("train()", PENDING)
        await other.commit(task)
        await other.commit(python("test()", PENDING))
        waiting, number = await history.waiting_elsewhere(0, 10, search="TRAIN(")
        assert ([each.task_id for each in waiting], number) == ([task.task_id], 1)


async def test_unwritten_tasks_are_found_by_code_while_history_fails(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        stored = python("train(1)")
        await history.commit(stored)
        changed, new = moved(stored, COMPLETED, error="x"), python("train(2)", PENDING)
        live = {task.task_id: as_it_is(task) for task in (changed, new, python("test()", PENDING))}
        history._problem = "the disk is full"
        assert await found(history, "train(", live=lambda: live) == [new.task_id, stored.task_id]
        history._problem = None


async def test_deleted_task_leaves_no_code_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        one, same, other = python("secret = 1"), python("secret = 1"), python("x = 2")
        for task in (one, same, other):
            await history.commit(task)
        assert len(rows(tmp_path, "SELECT text FROM texts")) == 2, "the same code is stored once"
        await history.delete(one.task_id)
        assert await found(history, "secret") == [same.task_id]
        await history.delete(same.task_id)
        assert await found(history, "secret") == []
        assert rows(tmp_path, "SELECT text FROM texts") == [("x = 2",)]


async def test_rejected_record_leaves_no_code_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        task = python("secret = 1")
        await history.commit(task)
        await history.delete(task.task_id)
        history.write_behind(task.task_id, as_it_is(task))
        assert await found(history, "secret") == []
        assert rows(tmp_path, "SELECT text FROM texts") == []


async def test_tasks_of_earlier_version_are_found_after_a_sweep(tmp_path: Path) -> None:
    old = [
        ("task_1", "completed", '{"code":"train()","world":{"environment":{"A":"hidden"}}}'),
        ("task_2", "failed", '{"code":"train()"}'),
        ("task_3", "completed", '{"size":1024}'),
        ("task_4", "completed", "damaged {"),
        ("task_5", "completed", None),
        ("task_6", "failed", "[1]"),
        ("task_7", "completed", '{"text":"' + "a " * search.LONGEST_READ + '"}'),
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:5])
        connection.executemany(
            "INSERT INTO tasks (runtime, operation, submitted, finished, durable, embedded, attempt, retries, document, title, id, state, "
            "parameters) VALUES ('rt_0', 'x', 1, 1, 1, 0, 1, 0, '{}', 'a name', ?, ?, ?)",
            old,
        )
    async with opened(tmp_path, retention_days=0) as history:
        assert await found(history, "train()") == []
        assert len(await found(history, "a name")) == len(old), "the name is known already"
        new = python("train()")
        await history.commit(new)
        numbers = rows(tmp_path, "SELECT sum(completed), sum(failed) FROM task_groups")
        await history.sweep()
        assert await found(history, "train()") == [new.task_id, "task_2", "task_1"]
        assert await found(history, "train()", states=[TaskState.FAILED]) == ["task_2"]
        assert await found(history, "size=1024") == ["task_3"]
        assert await found(history, "hidden") == []
        assert len(await found(history, "a name")) == len(old)
        assert rows(tmp_path, "SELECT sum(completed), sum(failed) FROM task_groups") == numbers
        assert rows(tmp_path, "SELECT count(*) FROM task_groups WHERE text = 0") == [(0,)]
        assert rows(tmp_path, "SELECT count(*) FROM texts") == [(3,)], "the code, the size, and the empty text"


def test_text_has_work_and_neither_environment_nor_encoded_data() -> None:
    text = search_text(
        {
            "code": "Straße = 1",
            "inputs": {"n": 3, "flag": True, "x": {"array": "arr_1"}, "y": [1, 2.5], "long": list(range(1000)), "none": None},
            "messages": [{"role": "user", "content": "Hello \udcff"}],
            "pickled": "AAAA",
            "encoded": "A" * 10_000,
            "world": {"environment": {"TOKEN": "hidden"}, "interpreter": "/usr/bin/python3"},
            "deep": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}},
        }
    )
    assert text.split("\n") == ["strasse = 1", "n=3", "flag=true", "y=1, 2.5", "role=user", "content=hello ?"]
    assert len(search_text({"code": "x = 1\n" * LONGEST_TEXT})) == LONGEST_TEXT
    assert search_text(None) == search_text({}) == ""
