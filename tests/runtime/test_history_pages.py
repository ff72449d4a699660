"""History lists: order, both ways of paging, counts, and cost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.runtime.storage import queries
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtime.history_support import make_task, moved, opened

FILTERS: list[dict[str, Any]] = [
    {},
    {"states": [TaskState.RUNNING]},
    {"states": [TaskState.COMPLETED, TaskState.FAILED, TaskState.FAILED]},
    {"operation": "compute"},
    {"owner": "ann"},
    {"states": [TaskState.COMPLETED, TaskState.PENDING], "operation": "call", "owner": "ben"},
    {"states": []},
    {"operation": "unheard of"},
    {"owner": ""},
]


def matches(task: Task, wanted: dict[str, Any]) -> bool:
    return (
        ("states" not in wanted or task.status in wanted["states"])
        and ("operation" not in wanted or task.operation == wanted["operation"])
        and ("owner" not in wanted or task.owner == wanted["owner"])
    )


async def filled(history: History, number: int, seed: int) -> list[Task]:
    """Record random tasks out of order and change their states; some were submitted in the same microsecond."""
    chance = random.Random(seed)
    tasks = [
        make_task(
            seconds=1_700_000_000 + chance.randrange(number // 2),
            operation=chance.choice(["compute", "call", "python"]),
            owner=chance.choice([None, "ann", "ben"]),
            wait=chance.random() < 0.5,
        )
        for _ in range(number)
    ]
    await asyncio.gather(*(history.commit(task) for task in tasks))
    tasks = [moved(task, chance.choice(list(TaskState))) for task in tasks]
    await asyncio.gather(*(history.commit(task) for task in tasks))
    return tasks


async def by_keys(history: History, limit: int, wanted: dict[str, Any]) -> tuple[list[Task], set[int]]:
    """Return all pages, each requested with the `before` of the previous one."""
    found: list[Task] = []
    totals = set()
    before: str | None = None
    while True:
        tasks, total, before = await history.page(limit, before=before, **wanted)
        found += tasks
        totals.add(total)
        if before is None:
            return found, totals
        assert len(tasks) == limit


@pytest.mark.parametrize("limit", [1, 7, 400])
@pytest.mark.parametrize("wanted", FILTERS, ids=str)
async def test_paging_by_key_and_offset_returns_every_match_once(tmp_path: Path, wanted: dict[str, Any], limit: int) -> None:
    async with opened(tmp_path, "rt_1") as history, opened(tmp_path, "rt_2") as other:
        tasks = await filled(history, 60, 1) + await filled(other, 60, 2)
        expected = [task for task in tasks if matches(task, wanted)]
        found, totals = await by_keys(history, limit, wanted)
        assert sorted(task.task_id for task in found) == sorted(task.task_id for task in expected)
        assert totals == {len(expected)}
        times = [task.submitted_at for task in found]
        assert times == sorted(times, reverse=True)
        offsets = [
            task.task_id for offset in range(0, len(expected), limit) for task in (await history.page(limit, offset=offset, **wanted))[0]
        ]
        assert offsets == [task.task_id for task in found]
        assert {task.here for task in found} <= {True, False}
        assert all(task.here == (task.runtime == "rt_1") for task in found)


async def test_counts_stay_exact_after_moves_takeovers_and_deletions(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        tasks = await filled(history, 200, 3)
        for task in tasks[:50]:
            if task.status.terminal:
                await history.delete(task.task_id)
    async with opened(tmp_path, "rt_2") as history:
        left: list[Task] = (await history.page(1_000))[0]
        assert any(task.status is TaskState.INTERRUPTED for task in left)
        assert any(task.runtime == "rt_2" for task in left)
        for wanted in FILTERS:
            assert (await history.page(0, **wanted))[1] == sum(matches(task, wanted) for task in left)


async def test_new_tasks_do_not_shift_next_page(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        tasks = [make_task(seconds=1_700_000_000 + index) for index in range(10)]
        for task in tasks:
            await history.commit(task)
        _, _, before = await history.page(3)
        await history.commit(make_task())
        rest, total, _ = await history.page(3, before=before)
        assert [task.task_id for task in rest] == [task.task_id for task in tasks[6:3:-1]]
        assert total == 11
        shifted, _, _ = await history.page(3, before=before, offset=2)
        assert [task.task_id for task in shifted] == [task.task_id for task in tasks[4:1:-1]]


async def test_paging_continues_after_deleted_task(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        tasks = [make_task(TaskState.COMPLETED, seconds=1_700_000_000) for _ in range(9)]
        for task in tasks:
            await history.commit(task)
        first, _, before = await history.page(4)
        assert before == first[-1].task_id == tasks[5].task_id
        await history.delete(before)
        rest, total, _ = await history.page(4, before=before)
        assert [task.task_id for task in rest] == [task.task_id for task in tasks[4:0:-1]]
        assert total == 8
        with pytest.raises(InvalidRequest, match="before"):
            await history.page(4, before="task_none")


async def test_unusual_limits_and_offsets_are_accepted(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        await history.commit(make_task())
        assert (await history.page(0))[:2] == ([], 1)
        assert (await history.page(-5))[:2] == ([], 1)
        assert len((await history.page(10**9, offset=-3))[0]) == 1
        assert (await history.page(10, offset=10**9))[:2] == ([], 1)


def test_pages_use_indexes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest tasks of each state come from an index; only the page itself is sorted."""

    async def scenario() -> None:
        async with opened(tmp_path) as history:
            await history.commit(make_task())

    asyncio.run(scenario())
    with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3")) as connection:
        for wanted, index in (
            (queries.Filter(), "tasks_submitted"),
            (queries.Filter(("completed", "failed")), "tasks_state"),
            (queries.Filter(operation="compute"), "tasks_operation"),
            (queries.Filter(owner="ann"), "tasks_owner"),
        ):
            for place in (None, (5, 5)):
                query, values = queries._sequences(wanted, place, 100, 0)
                plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
                lines = [line for line in plan if "tasks" in line]
                assert lines
                assert all(f"COVERING INDEX {index}" in line for line in lines), plan
                if place is not None or index != "tasks_submitted":
                    assert all(line.startswith("SEARCH") for line in lines), plan


async def test_last_page_is_as_fast_as_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        await history.commit(make_task(seconds=1_700_000_000))
        with contextlib.closing(sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None)) as connection:
            # 100,000 copies of one record, a second apart.
            connection.execute("BEGIN")
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
                "INSERT INTO tasks SELECT sequence + i, printf('task_%06d', i), runtime, iif(i % 1000, 'completed', 'failed'), "
                "operation, owner, submitted + i * 1000000, submitted, durable, embedded, attempt, retries, document, parameters "
                "FROM tasks, n"
            )
            connection.execute("COMMIT")

        async def cost(**arguments: Any) -> float:
            times = []
            for _ in range(15):
                start = time.perf_counter()
                await history.page(20, **arguments)
                times.append(time.perf_counter() - start)
            return min(times)

        assert (await history.page(1))[1] == 100_001
        failed = [TaskState.FAILED]
        assert (await history.page(1, states=failed))[1] == 100
        first = await cost()
        # Scanning 100,000 rows takes tens of milliseconds; these take about one.
        assert await cost(before="task_000030") < 5 * first + 0.002
        assert await cost(states=failed) < 5 * first + 0.002
        assert await cost(states=failed, before="task_030000") < 5 * first + 0.002
