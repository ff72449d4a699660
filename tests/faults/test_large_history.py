"""Work of task lists over a large history: bounded for every filter, page and offset, and in parallel."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.runtime.storage import queries
from openruntime_jupyter.runtime.storage.queries import Filter
from openruntime_jupyter.runtime.storage.schema import MIGRATIONS, STATES, migrate
from openruntime_jupyter.runtime.storage.search import group_older
from openruntime_jupyter.runtime.storage.store import READERS
from openruntime_jupyter.schemas.tasks import TaskState
from tests.runtime.history_support import opened

TASKS = 20_000
STEPS = 10
"""Steps of SQLite's virtual machine between two calls of the progress handler."""
FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ? - 1)
INSERT INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, notebook, title, document, parameters)
SELECT printf('task_%020d', n), 'rt_1', CASE WHEN n % 1000 = 7 THEN 'failed' ELSE 'completed' END,
    CASE n % 4 WHEN 0 THEN 'call' ELSE 'compute' END, CASE WHEN n % 4000 = 0 THEN 'ann' WHEN n % 2 THEN 'ben' END,
    1700000000000000 - n, 1700000000500000 + n, 1, 0, 1, 0, CASE WHEN n % 3 = 0 THEN 'a.ipynb' END, printf('step %d', n % 100),
    printf('{"task_id":"task_%020d","status":"%s","operation":"compute","timestamp":"2026-01-01T00:00:00.000000Z",'
    || '"submitted_at":"2026-01-01T00:00:00.000000Z"}', n, CASE WHEN n % 1000 = 7 THEN 'failed' ELSE 'completed' END),
    printf('{"size":%d}', n % 50) FROM numbers
"""


def fill(path: Path, version: int = len(MIGRATIONS)) -> None:
    """Create the file of a release with many finished tasks."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, MIGRATIONS[:version])
        connection.execute(FILL, (TASKS,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    fill(folder / "history.sqlite3", 4)
    return folder


@pytest.fixture(scope="module")
def connection(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite3", isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("BEGIN")
        while group_older(connection):
            pass
        connection.execute("COMMIT")
        yield connection


def expected(wanted: Filter) -> list[str]:
    """Return the ids of the matching tasks, newest first, by the rule that `FILL` follows."""
    found = []
    for n in reversed(range(TASKS)):
        columns = {
            "operation": "compute" if n % 4 else "call",
            "owner": "ann" if n % 4000 == 0 else "ben" if n % 2 else None,
            "notebook": None if n % 3 else "a.ipynb",
        }
        state = "failed" if n % 1000 == 7 else "completed"
        matching = all(getattr(wanted, name) in (None, value) for name, value in columns.items())
        if matching and (wanted.states is None or state in wanted.states) and (wanted.name or "") in f"step {n % 100}":
            if (wanted.search or "") not in f"step {n % 100}\nsize={n % 50}":
                continue
            found.append(f"task_{n:020d}")
    return found


FILTERS = [
    Filter(),
    Filter(("failed",)),
    Filter(("completed", "failed")),
    Filter(operation="call"),
    Filter(owner="ann"),
    Filter(("failed",), owner="ben"),
    Filter(("failed",), operation="call", owner="ann"),
    Filter(notebook="a.ipynb"),
    Filter(name="step 99"),
    Filter(name="step"),
    Filter(("failed",), notebook="a.ipynb", name="7"),
    Filter(("pending",)),
    Filter(name="none"),
    Filter(search="size=49"),
    Filter(search="size"),
    Filter(("failed",), notebook="a.ipynb", search="7"),
    Filter(search="none"),
]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_pages_are_exact_and_cost_little(connection: sqlite3.Connection, wanted: Filter) -> None:
    matching = expected(wanted)
    for offset in (0, 3, len(matching) // 2, max(0, len(matching) - 5), TASKS):
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += STEPS
            return 0

        connection.set_progress_handler(count, STEPS)
        tasks, total, following = queries.page(connection, "rt_1", wanted, 10, None, offset)
        connection.set_progress_handler(None, 0)
        assert [task.task_id for task in tasks] == matching[offset : offset + 10]
        assert total == len(matching)
        assert (following is not None) == (len(matching) > offset + 10)
        near_an_end = offset in (0, 3) or offset >= len(matching) - 5
        assert steps <= (13_000 if near_an_end else 12 * TASKS), f"offset {offset}"
        if not matching:
            assert steps <= 2_500
    if len(matching) > 20:
        before = matching[9]
        tasks, _, _ = queries.page(connection, "rt_1", wanted, 10, before, 0)
        assert [task.task_id for task in tasks] == matching[10:20]


def test_every_state_has_a_column_of_numbers() -> None:
    assert {str(state) for state in TaskState} == set(STATES)


async def test_slow_lists_do_not_delay_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        release = threading.Event()

        def block(_: Any) -> None:
            assert release.wait(30)

        slow = [asyncio.create_task(history.look(block)) for _ in range(2 * READERS)]
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(history.page(10), 10) == ([], 0, None)
        finally:
            release.set()
        await asyncio.gather(*slow)
