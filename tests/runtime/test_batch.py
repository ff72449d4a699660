"""Many tasks at once: answered each in its place, recorded in one transaction."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import (
    InvalidRequest,
    NotAllowed,
    OpenRuntimeError,
    QueueFull,
    StorageUnavailable,
    UnknownDevice,
    UnknownOperation,
)
from openruntime_jupyter.runtime.ids import make_ids, neighbour
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.storage.writer import Writer
from openruntime_jupyter.schemas.batch import MOST_IN_BATCH
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.runtimes import ME, cell, ended, runtime_in, says

HOLD = "import time\nprint('holding', flush=True)\nwhile True: time.sleep(0.01)"


def call(**fields: Any) -> dict[str, Any]:
    return {"operation": "call", "parameters": {}, **fields}


def tasks_of(answers: list[Task | OpenRuntimeError]) -> list[Task]:
    assert all(isinstance(answer, Task) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Task)]


async def hold(runtime: Runtime) -> str:
    task_id = await cell(runtime, HOLD)
    await says(runtime, task_id, "holding")
    return task_id


async def test_each_is_answered_in_its_place_and_a_wrong_one_spoils_no_other(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        wrong: list[Any] = [call(priority=99), {"operation": "nosuch", "parameters": {}}, call(device_preference="device_9"), 3, None]
        answers = await runtime.batches.submit([call(name="first"), *wrong, call(name="last", wait=True)], ME)
        assert [type(answer) for answer in answers[1:-1]] == [
            InvalidRequest,
            UnknownOperation,
            UnknownDevice,
            InvalidRequest,
            InvalidRequest,
        ]
        first, last = tasks_of([answers[0], answers[-1]])
        assert (first.name, last.name, first.wait, last.wait) == ("first", "last", False, False)
        for task in (first, last):
            assert (await ended(runtime, task.task_id)).status is TaskState.COMPLETED


async def test_who_may_not_run_code_is_told_in_place(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        stranger = Caller(may_execute=False, trusted=False)
        refused, taken = await runtime.batches.submit([call(), {"operation": "compute", "parameters": {}}], stranger)
        assert isinstance(refused, NotAllowed)
        assert isinstance(taken, Task)
        assert taken.timeout == runtime.settings.untrusted_timeout


async def test_a_thousand_are_on_disk_in_one_transaction_and_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    together = Writer._together
    monkeypatch.setattr(Writer, "_together", lambda self, jobs: (groups.append(len(jobs)), together(self, jobs))[1])

    async with runtime_in(tmp_path) as runtime:
        holder = await hold(runtime)
        groups.clear()
        tasks = tasks_of(await runtime.batches.submit([call(name=str(number)) for number in range(1000)], ME))
        assert sum(groups) == 1, "one piece of work for all of them"
        assert [task.name for task in tasks] == [str(number) for number in range(1000)]
        assert [task.position for task in tasks] == list(range(1, 1001))
        assert sorted(task.task_id for task in tasks) == [task.task_id for task in tasks]
        assert (await runtime.list_tasks(limit=1, states=[TaskState.PENDING])).total_count == 1000
        assert await runtime.history.get(tasks[500].task_id) is not None
        await runtime.cancel(holder)
        assert (await ended(runtime, tasks[3].task_id)).status is TaskState.COMPLETED


async def test_the_queues_bound_counts_all_of_them(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=5) as runtime:
        await hold(runtime)
        both = await asyncio.gather(*(runtime.batches.submit([call() for _ in range(4)], ME) for _ in range(2)))
        answers = [answer for some in both for answer in some]
        assert sum(isinstance(answer, Task) for answer in answers) == 5
        assert sum(isinstance(answer, QueueFull) for answer in answers) == 3
        assert runtime.metrics().pending_tasks == 5


async def test_without_a_queue_only_what_can_start_at_once_is_taken(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=0) as runtime:
        answers = await runtime.batches.submit([call() for _ in range(3)], ME)
        assert [type(answer) for answer in answers] == [Task, QueueFull, QueueFull]


async def test_the_same_key_gives_the_same_tasks_and_tries_again_what_was_refused(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=2) as runtime:
        holder = await hold(runtime)
        requests = [call(priority=99), call(), call(), call()]
        first = await runtime.batches.submit(requests, ME, "key")
        assert [type(answer) for answer in first] == [InvalidRequest, Task, Task, QueueFull]
        again = await runtime.batches.submit(requests, ME, "key")
        assert [type(answer) for answer in again] == [InvalidRequest, Task, Task, QueueFull]
        early = tasks_of(first[1:3])
        assert [task.task_id for task in tasks_of(again[1:3])] == [task.task_id for task in early]
        await runtime.cancel(holder)
        for task in early:
            await ended(runtime, task.task_id)
        third = await runtime.batches.submit(requests, ME, "key")
        assert [task.task_id for task in tasks_of(third[1:3])] == [task.task_id for task in early]
        assert isinstance(third[3], Task)
        assert (await runtime.list_tasks(operation="call")).total_count == 3


async def test_the_same_key_finds_its_tasks_after_a_restart(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        before = tasks_of(await runtime.batches.submit([call(), call()], ME, "key"))
        for task in before:
            await ended(runtime, task.task_id)
    async with runtime_in(tmp_path) as runtime:
        after = tasks_of(await runtime.batches.submit([call(), call()], ME, "key"))
        assert [(task.task_id, task.status) for task in after] == [(task.task_id, TaskState.COMPLETED) for task in before]


async def test_a_key_stands_for_one_batch_alone(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await runtime.batches.submit([call()], ME, "key")
        for other in ([call(), call()], [call(name="other")]):
            with pytest.raises(InvalidRequest, match="another request"):
                await runtime.batches.submit(other, ME, "key")
        assert isinstance((await runtime.batches.submit([call(name="other")], Caller("another"), "key"))[0], Task)


async def test_what_was_purged_is_not_made_again_and_the_others_are_told(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        first, second = tasks_of(await runtime.batches.submit([call(), call()], ME, "key"))
        await ended(runtime, second.task_id)
        await runtime.purge(second.task_id)
        again, refused = await runtime.batches.submit([call(), call()], ME, "key")
        assert isinstance(again, Task)
        assert again.task_id == first.task_id
        assert isinstance(refused, OpenRuntimeError)
        assert "purged" in str(refused)


async def test_what_the_disk_does_not_take_is_not_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with runtime_in(tmp_path) as runtime:
        await hold(runtime)

        async def full(*_: Any) -> set[str]:
            raise StorageUnavailable("the disk is full: make room")

        monkeypatch.setattr(runtime.history, "commit_all", full)
        with pytest.raises(StorageUnavailable):
            await runtime.batches.submit([call(), call()], ME)
        assert runtime.metrics().pending_tasks == 0


async def test_too_many_are_refused_as_a_whole(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        with pytest.raises(InvalidRequest, match="5,000 in one batch"):
            await runtime.batches.submit([call()] * (MOST_IN_BATCH + 1), ME)


def test_ids_that_are_made_together_lead_to_one_another() -> None:
    ids = make_ids("task", 100)
    assert ids == sorted(set(ids))
    assert [neighbour(ids[40], step) for step in range(-40, 60)] == ids
    assert make_ids("task", 1)[0] > ids[-1]
