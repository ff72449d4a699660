"""Submission of many tasks in one transaction, and collection of many results."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import (
    InvalidRequest,
    OpenRuntimeError,
    QueueFull,
    StorageUnavailable,
    UnknownDevice,
    UnknownOperation,
)
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.storage.writer import Writer
from openruntime_jupyter.runtime.tasks import batch, registry
from openruntime_jupyter.schemas.batch import MOST_IN_BATCH
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskState
from tests.runtimes import ME, busy, completed, ended, pickled, runtime_in, until


def call(**fields: Any) -> dict[str, Any]:
    return {"operation": "call", "parameters": {"burst": "one"}, **fields}


def tasks_of(answers: list[Task | OpenRuntimeError]) -> list[Task]:
    assert all(isinstance(answer, Task) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Task)]


async def test_invalid_request_in_batch_rejects_no_other(runtime: Runtime) -> None:
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
        await completed(runtime, task.task_id)


async def test_batch_is_one_transaction_and_runs_in_order(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    together = Writer._run_group
    monkeypatch.setattr(Writer, "_run_group", lambda self, jobs: (groups.append(len(jobs)), together(self, jobs))[1])
    holder = await busy(runtime)
    groups.clear()
    tasks = tasks_of(await runtime.batches.submit([call(name=str(number)) for number in range(200)], ME))
    assert sum(groups) == 1, "one piece of work for all of them"
    assert [task.name for task in tasks] == [str(number) for number in range(200)]
    assert [task.position for task in tasks] == list(range(1, 201))
    assert sorted(task.task_id for task in tasks) == [task.task_id for task in tasks]
    assert (await runtime.list_tasks(TasksQuery(limit=1, state=[TaskState.PENDING]))).total_count == 200
    assert await runtime.history.get(tasks[100].task_id) is not None
    await runtime.cancel(holder)
    await completed(runtime, tasks[199].task_id)


async def test_max_pending_counts_tasks_of_batches(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=5) as runtime:
        await busy(runtime)
        both = await asyncio.gather(*(runtime.batches.submit([call() for _ in range(4)], ME) for _ in range(2)))
        answers = [answer for some in both for answer in some]
        refused = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert (len(tasks_of([answer for answer in answers if answer not in refused])), len(refused)) == (5, 3)
        assert "max_pending" in str(refused[0])
        assert refused[0].retry_after
        assert runtime.metrics().pending_tasks == 5


async def test_max_pending_0_accepts_tasks_that_can_start(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=0) as runtime:
        answers = await runtime.batches.submit([call() for _ in range(3)], ME)
        assert [type(answer) for answer in answers] == [Task, QueueFull, QueueFull]


async def test_repeated_key_returns_same_tasks_and_retries_rejected(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, max_pending=2) as runtime:
        holder = await busy(runtime)
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
        assert (await runtime.list_tasks(TasksQuery(operation="call"))).total_count == 3


async def test_repeated_key_finds_tasks_after_restart(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        before = tasks_of(await runtime.batches.submit([call(), call()], ME, "key"))
        for task in before:
            await ended(runtime, task.task_id)
    async with runtime_in(tmp_path) as runtime:
        after = tasks_of(await runtime.batches.submit([call(), call()], ME, "key"))
        assert [(task.task_id, task.status) for task in after] == [(task.task_id, TaskState.COMPLETED) for task in before]


async def test_repeated_key_does_not_restore_purged_task(runtime: Runtime) -> None:
    first, second = tasks_of(await runtime.batches.submit([call(), call()], ME, "purged"))
    await ended(runtime, second.task_id)
    await runtime.purge(second.task_id)
    again, refused = await runtime.batches.submit([call(), call()], ME, "purged")
    assert isinstance(again, Task)
    assert again.task_id == first.task_id
    assert isinstance(refused, OpenRuntimeError)
    assert "purged" in str(refused)


async def test_batch_that_cannot_be_stored_is_not_queued(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = await busy(runtime)

    async def full(*_: Any) -> set[str]:
        raise StorageUnavailable("the disk is full: make room")

    monkeypatch.setattr(runtime.history, "commit_all", full)
    with pytest.raises(StorageUnavailable):
        await runtime.batches.submit([call(), call()], ME)
    assert runtime.metrics().pending_tasks == 0
    await runtime.cancel(holder)


async def test_too_large_batch_is_rejected(runtime: Runtime) -> None:
    with pytest.raises(InvalidRequest, match="in one batch"):
        await runtime.batches.submit([call()] * (MOST_IN_BATCH + 1), ME)


def repeat(text: str, times: int) -> str:
    return text * times


def calls(*arguments: tuple[str, int]) -> list[dict[str, Any]]:
    return [call(parameters={**pickled(repeat, *each), "burst": "one"}) for each in arguments]


async def submit_many(runtime: Runtime, requests: list[dict[str, Any]], **options: Any) -> list[str]:
    return [task.task_id for task in tasks_of(await runtime.batches.submit(requests, ME, **options))]


def values(collected: list[Ended]) -> list[Any]:
    return [None if each.payload is None else pickle.loads(each.payload[0]) for each in collected]


async def test_collect_returns_ended_tasks_in_the_order_of_the_request(runtime: Runtime) -> None:
    ids = await submit_many(runtime, calls(("a", 1), ("b", 2), ("c", 3)))
    collected = await runtime.results.collect([*reversed(ids), ids[0]], at_least=3, wait=60)
    assert [each.task_id for each in collected] == list(reversed(ids))
    assert values(collected) == ["ccc", "bb", "a"]
    assert all(isinstance(each.task, Task) and each.task.parameters is None for each in collected)


async def test_collect_returns_once_enough_tasks_have_ended(runtime: Runtime) -> None:
    ids = await submit_many(runtime, calls(("a", 1), ("b", 1)))
    holder = await busy(runtime)
    late = await submit_many(runtime, calls(("c", 1)))
    assert values(await runtime.results.collect([*ids, holder, *late], at_least=2, wait=60)) == ["a", "b"]
    assert values(await runtime.results.collect([holder, *late], at_least=2, wait=0)) == []
    waiting = asyncio.create_task(runtime.results.collect([holder, *late], at_least=99, wait=60))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await runtime.cancel(holder)
    collected = await waiting
    assert [getattr(each.task, "status", None) for each in collected] == [TaskState.CANCELLED, TaskState.COMPLETED]


async def test_collect_reads_tasks_that_only_the_history_knows(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FINISHED_KEPT", 0)
    ids = await submit_many(runtime, calls(("a", 1), ("b", 1)))
    await runtime.results.collect(ids, at_least=2, wait=60)
    assert values(await runtime.results.collect(ids, at_least=2, wait=60)) == ["a", "b"]


async def test_collect_waits_for_a_task_of_another_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "OTHERS_POLL", 0.01)

    async with runtime_in(tmp_path) as runtime, runtime_in(tmp_path) as other:
        holder = await busy(other, wait=False)
        (known,) = await submit_many(runtime, calls(("a", 1)))
        waiting = asyncio.create_task(runtime.results.collect([holder, known], at_least=2, wait=60))
        await other.cancel(holder)
        collected = await waiting
        assert [getattr(each.task, "status", None) for each in collected] == [TaskState.CANCELLED, TaskState.COMPLETED]


async def test_collect_bounds_the_payloads_of_one_answer(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PAYLOAD", 2000)
    monkeypatch.setattr(batch, "MOST_PAYLOADS", 1500)
    ids = await submit_many(runtime, calls(("a", 3000), ("b", 1000), ("c", 1000), ("d", 1000)))
    await runtime.results.collect(ids, at_least=4, wait=60)
    collected = await runtime.results.collect(ids)
    assert [each.task_id for each in collected] == ids[:3], "the third fills the answer"
    assert values(collected) == [None, "b" * 1000, "c" * 1000], "the first is fetched by itself"


async def test_cancelled_collect_leaves_no_callbacks(runtime: Runtime) -> None:
    holder = await busy(runtime)
    entry = runtime.tasks.find(holder)
    assert entry is not None
    for _ in range(3):
        waiting = asyncio.create_task(runtime.results.collect([holder], wait=60))
        await until(lambda: entry.done._callbacks, what="the wait")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not entry.done._callbacks
    await runtime.cancel(holder)


async def test_tasks_that_are_not_durable_end_with_their_runtime(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await busy(runtime)
        lasting = await submit_many(runtime, calls(("a", 1)))
        passing = await submit_many(runtime, calls(("b", 1)), durable=False)
        assert [(await runtime.tasks.get(each)).wait for each in (*lasting, *passing)] == [False, True]
        assert await runtime.history.get(passing[0]) is not None, "it is on disk, but for its later states"
    async with runtime_in(tmp_path) as runtime:
        await runtime.results.collect(lasting, wait=60)
        states = [(await runtime.tasks.get(each)).status for each in (*lasting, *passing)]
        assert states == [TaskState.COMPLETED, TaskState.INTERRUPTED]


async def test_key_of_durable_batch_does_not_match_transient_one(runtime: Runtime) -> None:
    first = await submit_many(runtime, [call()], idempotency_key="durable", durable=False)
    assert await submit_many(runtime, [call()], idempotency_key="durable", durable=False) == first
    with pytest.raises(InvalidRequest, match="another request"):
        await submit_many(runtime, [call()], idempotency_key="durable")


async def test_a_failure_of_the_history_is_raised(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise OpenRuntimeError("unreadable")

    monkeypatch.setattr(runtime.history, "get", fail)
    with pytest.raises(OpenRuntimeError, match="unreadable"):
        await runtime.results.collect(["task_0"])
