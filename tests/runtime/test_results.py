"""Collecting the results of many tasks."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError, TaskNotFound
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks import batch, registry
from openruntime_jupyter.schemas.tasks import Ended, Task, TaskRequest, TaskState
from tests.runtimes import ME, cell, pickled, runtime_in, says, until

HOLD = "import time\nprint('holding', flush=True)\nwhile True: time.sleep(0.01)"


def repeat(text: str, times: int) -> str:
    return text * times


def calls(*arguments: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"operation": "call", "parameters": pickled(repeat, *each)} for each in arguments]


async def submit_many(runtime: Runtime, requests: list[dict[str, Any]], **options: Any) -> list[str]:
    answers = await runtime.batches.submit(requests, ME, **options)
    assert all(isinstance(answer, Task) for answer in answers), answers
    return [answer.task_id for answer in answers if isinstance(answer, Task)]


def values(collected: list[Ended]) -> list[Any]:
    return [None if each.payload is None else pickle.loads(each.payload[0]) for each in collected]


async def test_collect_returns_ended_tasks_in_the_order_of_the_request(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        ids = await submit_many(runtime, calls(("a", 1), ("b", 2), ("c", 3)))
        collected = await runtime.results.collect([*reversed(ids), ids[0]], at_least=3, wait=60)
        assert [each.task_id for each in collected] == list(reversed(ids))
        assert values(collected) == ["ccc", "bb", "a"]
        assert all(isinstance(each.task, Task) and each.task.parameters is None for each in collected)


async def test_collect_answers_once_enough_tasks_have_ended(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        ids = await submit_many(runtime, calls(("a", 1), ("b", 1)))
        holder = await cell(runtime, HOLD)
        late = await submit_many(runtime, calls(("c", 1)))
        assert values(await runtime.results.collect([*ids, holder, *late], at_least=2, wait=60)) == ["a", "b"]
        assert values(await runtime.results.collect([holder, *late], at_least=2, wait=0)) == []
        waiting = asyncio.create_task(runtime.results.collect([holder, *late], at_least=99, wait=60))
        await says(runtime, holder, "holding")
        assert not waiting.done()
        await runtime.cancel(holder)
        collected = await waiting
        assert [getattr(each.task, "status", None) for each in collected] == [TaskState.CANCELLED, TaskState.COMPLETED]


async def test_collect_names_unknown_tasks(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        (known,) = await submit_many(runtime, calls(("a", 1)))
        unknown, found = await runtime.results.collect(["task_0", known], at_least=2, wait=60)
        assert isinstance(unknown.task, TaskNotFound)
        assert values([found]) == ["a"]


async def test_collect_reads_tasks_that_only_the_history_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FINISHED_KEPT", 0)

    async with runtime_in(tmp_path) as runtime:
        ids = await submit_many(runtime, calls(("a", 1), ("b", 1)))
        await runtime.results.collect(ids, at_least=2, wait=60)
        assert values(await runtime.results.collect(ids, at_least=2, wait=60)) == ["a", "b"]


async def test_collect_waits_for_a_task_of_another_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "OTHERS_POLL", 0.01)

    async with runtime_in(tmp_path) as runtime, runtime_in(tmp_path) as other:
        holder = await cell(other, HOLD, wait=False)
        (known,) = await submit_many(runtime, calls(("a", 1)))
        waiting = asyncio.create_task(runtime.results.collect([holder, known], at_least=2, wait=60))
        await says(other, holder, "holding")
        await other.cancel(holder)
        collected = await waiting
        assert [getattr(each.task, "status", None) for each in collected] == [TaskState.CANCELLED, TaskState.COMPLETED]


async def test_collect_bounds_the_payloads_of_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PAYLOAD", 2000)
    monkeypatch.setattr(batch, "MOST_PAYLOADS", 1500)

    async with runtime_in(tmp_path) as runtime:
        ids = await submit_many(runtime, calls(("a", 3000), ("b", 1000), ("c", 1000), ("d", 1000)))
        await runtime.results.collect(ids, at_least=4, wait=60)
        collected = await runtime.results.collect(ids)
        assert [each.task_id for each in collected] == ids[:3], "the third fills the answer"
        assert values(collected) == [None, "b" * 1000, "c" * 1000], "the first is fetched by itself"


async def test_cancelled_collect_leaves_no_callbacks(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        holder = await cell(runtime, HOLD)
        entry = runtime.tasks.find(holder)
        assert entry is not None
        for _ in range(3):
            waiting = asyncio.create_task(runtime.results.collect([holder], wait=60))
            await until(lambda: entry.done._callbacks, what="the wait")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert not entry.done._callbacks


async def test_tasks_that_are_not_durable_end_with_their_runtime(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await cell(runtime, HOLD)
        lasting = await submit_many(runtime, calls(("a", 1)))
        passing = await submit_many(runtime, calls(("b", 1)), durable=False)
        assert [(await runtime.tasks.get(each)).wait for each in (*lasting, *passing)] == [False, True]
        assert await runtime.history.get(passing[0]) is not None, "it is on disk, but for its later states"
    async with runtime_in(tmp_path) as runtime:
        await runtime.results.collect(lasting, wait=60)
        states = [(await runtime.tasks.get(each)).status for each in (*lasting, *passing)]
        assert states == [TaskState.COMPLETED, TaskState.INTERRUPTED]


async def test_one_idempotency_key_stands_for_durable_tasks_or_for_others(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        requests = [{"operation": "compute", "parameters": {}}]
        first = await submit_many(runtime, requests, idempotency_key="key", durable=False)
        assert await submit_many(runtime, requests, idempotency_key="key", durable=False) == first
        with pytest.raises(InvalidRequest, match="another request"):
            await submit_many(runtime, requests, idempotency_key="key")


async def test_a_failure_of_the_history_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with runtime_in(tmp_path) as runtime:

        async def fail(*_: Any) -> None:
            raise OpenRuntimeError("unreadable")

        monkeypatch.setattr(runtime.history, "get", fail)
        with pytest.raises(OpenRuntimeError, match="unreadable"):
            await runtime.results.collect(["task_0"])


async def test_burst_is_an_optional_parameter_of_call(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        for burst in (None, "abc"):
            await runtime.submit(TaskRequest(operation="call", parameters={"burst": burst}), ME)
        with pytest.raises(InvalidRequest, match="burst"):
            await runtime.submit(TaskRequest(operation="call", parameters={"burst": "x" * 101}), ME)
