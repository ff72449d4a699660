"""Response time of task lists over a million tasks, alone and while other lists are read."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, at_most, median, within
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.connection import NAME
from openruntime_jupyter.runtime.storage.search import with_id, write_texts
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import TaskState

TASKS = 1_000_000
PAGE = 100
ROUNDS = 5
TOGETHER = 4

LISTS: dict[str, dict[str, Any]] = {
    "first page": {},
    "offset 500,000": {"offset": 500_000},
    "offset 900,000": {"offset": 900_000},
    "two filters with few matches": {"states": [TaskState.FAILED], "owner": "ann"},
    "a state and offset 300,000": {"states": [TaskState.COMPLETED], "offset": 300_000},
    "an operation and offset 100,000": {"operation": "call", "offset": 100_000},
    "a name with few matches": {"name": "step 4999"},
    "a name with many matches": {"name": "step"},
    "a name without matches": {"name": "none"},
    "code with few matches": {"search": "value_4999 ="},
    "code with many matches": {"search": "mx.eval("},
    "code without matches": {"search": "torch"},
    "a notebook and offset 200,000": {"notebook": "/work/a.ipynb", "offset": 200_000},
}

FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ? - 1)
INSERT INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, notebook, title, document, parameters,
    text)
SELECT printf('task_%020d', n), 'rt_past', CASE WHEN n % 1000 = 7 THEN 'failed' WHEN n % 5000 = 11 THEN 'cancelled' ELSE 'completed' END,
    CASE n % 4 WHEN 0 THEN 'call' WHEN 1 THEN 'python' ELSE 'compute' END, CASE WHEN n % 10007 = 0 THEN 'ann' WHEN n % 2 THEN 'ben' END,
    1700000000000000 + n * 1000000, 1700000000500000 + n * 1000000, 1, 0, 1, 0, CASE WHEN n % 3 = 0 THEN '/work/a.ipynb' END,
    printf('step %d', n % 5000), printf('{"task_id":"task_%020d","status":"completed","operation":"compute",'
    || '"timestamp":"2026-01-01T00:00:00.000000Z","submitted_at":"2026-01-01T00:00:00.000000Z"}', n), '{}',
    (SELECT id FROM codes WHERE number = n % 5000) FROM numbers
"""
CODES = 5_000
"""Number of different codes, each of about 500 characters."""


def code(number: int) -> str:
    """Return one of the codes."""
    lines = [f"value_{number} = mx.random.normal(({number + line}, 64)); mx.eval(value_{number})" for line in range(8)]
    return "\n".join(lines)


def fill(connection: sqlite3.Connection) -> None:
    """Insert the tasks."""
    texts = [with_id(code(number)) for number in range(CODES)]
    connection.execute("CREATE TEMP TABLE codes (number INTEGER PRIMARY KEY, id INTEGER)")
    connection.executemany("INSERT INTO codes VALUES (?, ?)", ((number, text_id) for number, (text_id, _) in enumerate(texts)))
    connection.execute("BEGIN")
    connection.execute(FILL, (TASKS,))
    write_texts(connection, texts)
    connection.execute("COMMIT")


async def _seconds(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _measure(folder: Path) -> list[Row]:
    history = History(Settings(data_dir=folder), "rt_bench")
    history.open()
    with contextlib.closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
        fill(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def listed(wanted: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
        return lambda: history.page(PAGE, **wanted)

    async def first() -> float:
        return await _seconds(listed({}))

    try:
        await asyncio.gather(*(first() for _ in range(4 * TOGETHER)))  # all readers connect
        rows = []
        for name, wanted in LISTS.items():
            times = [1e3 * await _seconds(listed(wanted)) for _ in range(ROUNDS)]
            rows.append(within(f"list of a million tasks: {name}", median(times), 50, "ms"))
        idle = [await first() for _ in range(ROUNDS)]
        busy = []
        for _ in range(ROUNDS):
            others = [asyncio.create_task(_seconds(listed(wanted))) for wanted in list(LISTS.values())[1 : 1 + TOGETHER]]
            busy.append(await first())
            await asyncio.gather(*others)
        rows.append(at_most("first page during four other lists, and alone", 1e3 * median(busy), 1e3 * median(idle), 2.0, "ms"))
        return rows
    finally:
        await history.close()


def rows() -> list[Row]:
    """Return the rows of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder)))
