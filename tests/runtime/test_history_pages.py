"""History lists: order, both ways of paging, counts, and cost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest
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
    {"notebook": "/work/a.ipynb"},
    {"notebook": "/work/a.ipynb", "name": "RUN", "states": [TaskState.COMPLETED, TaskState.RUNNING, TaskState.RUNNING]},
    {"name": "ÉTUDE", "owner": "ann"},
    {"name": "%_"},
    {"name": "run", "operation": "call", "states": [TaskState.PENDING]},
    {"name": "run", "states": []},
    {"search": "A + b"},
    {"search": "étude", "owner": "ann"},
    {"search": "size=1", "name": "run", "states": [TaskState.COMPLETED, TaskState.PENDING]},
    {"search": "size=2", "notebook": "/work/a.ipynb"},
]


def matches(task: Task, wanted: dict[str, Any]) -> bool:
    return (
        ("states" not in wanted or task.status in wanted["states"])
        and ("operation" not in wanted or task.operation == wanted["operation"])
        and ("owner" not in wanted or task.owner == wanted["owner"])
        and ("notebook" not in wanted or task.notebook == wanted["notebook"])
        and ("name" not in wanted or wanted["name"].casefold() in (task.name or task.operation).casefold())
        and ("search" not in wanted or wanted["search"].casefold() in searched(task))
    )


def searched(task: Task) -> str:
    """Return what a search looks in, as the parameters of `filled` have it."""
    values = [f"{name}={value}" for name, value in (task.parameters or {}).items()]
    return "\n".join([task.name or task.operation, *values]).casefold()


async def filled(history: History, number: int, seed: int) -> list[Task]:
    """Record random tasks out of order and change their states; some were submitted in the same microsecond."""
    chance = random.Random(seed)
    tasks = [
        make_task(
            seconds=1_700_000_000 + chance.randrange(number // 2),
            operation=chance.choice(["compute", "call", "python"]),
            owner=chance.choice([None, "ann", "ben"]),
            wait=chance.random() < 0.5,
            notebook=chance.choice([None, "/work/a.ipynb", "/work/b.ipynb"]),
            name=chance.choice([None, "étude run", "Run 50%_x", "x"]),
            parameters=chance.choice([{"expression": "A + B"}, {"size": 12}, {"size": 2}, {}, None]),
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


@pytest.mark.parametrize("limit", [1, 7])
async def test_paging_by_key_and_offset_returns_every_match_once(tmp_path: Path, limit: int) -> None:
    async with opened(tmp_path, "rt_1") as history, opened(tmp_path, "rt_2") as other:
        tasks = await filled(history, 30, 1) + await filled(other, 30, 2)
        for wanted in FILTERS:
            expected = [task for task in tasks if matches(task, wanted)]
            found, totals = await by_keys(history, limit, wanted)
            assert [task.task_id for task in found] == [task.task_id for task in reversed(expected)]
            assert totals == {len(expected)}
            pages = [(await history.page(limit, offset=offset, **wanted))[0] for offset in range(0, len(expected), limit)]
            assert [task.task_id for tasks in pages for task in tasks] == [task.task_id for task in found]
            assert all(task.here == (task.runtime == "rt_1") for task in found)
            if not {"states", "operation", "owner"} & set(wanted):
                waiting, number = await history.waiting_elsewhere(0, limit, **wanted)
                there = [task.task_id for task in reversed(found) if task.status is TaskState.PENDING and not task.here]
                assert number == len(there)
                assert [task.task_id for task in waiting] == there[:limit]


async def test_counts_stay_exact_after_moves_takeovers_and_deletions(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        tasks = await filled(history, 200, 3)
        for task in tasks[:50]:
            if task.status.terminal:
                await history.delete(task.task_id)
    async with opened(tmp_path, "rt_2") as history:
        given = {task.task_id: task.parameters for task in tasks}
        left = [task.model_copy(update={"parameters": given[task.task_id]}) for task in (await history.page(1_000))[0]]
        assert any(task.status is TaskState.INTERRUPTED for task in left)
        assert any(task.runtime == "rt_2" for task in left)
        for wanted in FILTERS:
            assert (await history.page(0, **wanted))[1] == sum(matches(task, wanted) for task in left)


async def test_new_and_deleted_tasks_do_not_shift_next_page(history: History) -> None:
    tasks = [make_task(TaskState.COMPLETED, seconds=1_700_000_000 + index // 5) for index in range(10)]
    for task in tasks:
        await history.commit(task)
    first, _, before = await history.page(4)
    assert before == first[-1].task_id == tasks[6].task_id
    await history.commit(make_task())
    await history.delete(before)
    for offset in (0, 2):
        rest, total, _ = await history.page(4, before=before, offset=offset)
        assert [task.task_id for task in rest] == [task.task_id for task in tasks[5 - offset : 1 - offset if offset < 2 else None : -1]]
        assert total == 10
    with pytest.raises(InvalidRequest, match="before"):
        await history.page(4, before="task_none")


async def test_unusual_limits_and_offsets_are_accepted(history: History) -> None:
    await history.commit(make_task())
    assert (await history.page(0))[:2] == ([], 1)
    assert (await history.page(-5))[:2] == ([], 1)
    assert len((await history.page(10**9, offset=-3))[0]) == 1
    assert (await history.page(10, offset=10**9))[:2] == ([], 1)
