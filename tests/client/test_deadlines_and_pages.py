"""Deadlines that cancel tasks, batches, and iterators over pages and output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import pytest

from openruntime_jupyter.client import base
from openruntime_jupyter.client.async_base import AsyncTaskHandle
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.errors import InvalidRequest, TaskFailed, TaskNotFound, UnknownOperation

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def mine(client: Client) -> Iterator[Client]:
    """Return a client whose tasks have a unique name."""
    with client.with_options(name=f"pages {uuid4().hex}") as mine:
        yield mine


def states(client: Client) -> list[str]:
    return [str(task.status) for task in client.iter_tasks(name=client.options.name)]


@pytest.mark.parametrize("deadline", [0.4, 1.5])
def test_deadline_cancels_running_and_waiting_task(mine: Client, deadline: float) -> None:
    begun = time.monotonic()
    blocker = mine.submit_code(SLEEP)
    with pytest.raises(TimeoutError, match=f"no result within {deadline:g} s: task_.* was cancelled"):
        mine.with_options(deadline=deadline).run("compute")  # there is one slot
    blocker.cancel()
    with pytest.raises(TimeoutError, match="was cancelled"):
        mine.with_options(deadline=deadline).call(time.sleep, 60)
    assert time.monotonic() - begun < 30
    assert states(mine) == ["cancelled"] * 3


def test_result_before_deadline_is_returned(mine: Client) -> None:
    assert mine.with_options(deadline=60).run("compute", expression="1 + 2")["value"] == 3
    with pytest.raises(TaskFailed, match="division"):
        mine.with_options(deadline=60).call(lambda: 1 // 0)


def test_deadline_of_coroutine_cancels_task(mine: Client) -> None:
    async def run() -> None:
        with pytest.raises(TimeoutError, match=r"no result within 0.5 s: task_.* was cancelled"):
            await mine.aio.with_options(deadline=0.5).call(time.sleep, 60)

    asyncio.run(run())
    assert states(mine) == ["cancelled"]


def test_batch_is_submitted_in_parts(mine: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_IN_BATCH", 2)
    tasks = [{"operation": "compute", "parameters": {"expression": f"{number} + 1"}} for number in range(3)]
    array = {"operation": "compute", "parameters": {"expression": "sum(a)", "inputs": {"a": np.ones(3)}}, "priority": 7}
    outcomes = mine.submit_batch([*tasks, {"operation": "unknown"}, array])
    handles = [each for each in outcomes if isinstance(each, TaskHandle)]
    assert [each.result(60)["value"] for each in handles] == [1, 2, 3, 3]
    assert isinstance(outcomes[3], UnknownOperation)
    assert handles[-1].task.priority == 7
    assert mine.submit_batch([]) == []


def test_rejected_part_of_batch_has_its_error(mine: Client) -> None:
    rejected, ran = mine.submit_batch([{"operation": "compute", "priority": 99}, {"operation": "compute"}])
    assert isinstance(rejected, InvalidRequest)
    assert isinstance(ran, TaskHandle)
    with pytest.raises(TypeError, match="colour"):
        mine.submit_batch([{"operation": "compute", "colour": "red"}])


def test_results_of_many_tasks_come_together(mine: Client) -> None:
    tasks = [{"operation": "compute", "parameters": {"expression": expression}} for expression in ("1 + 1", "2 + 2")]
    first, second = [each for each in mine.submit_batch(tasks) if isinstance(each, TaskHandle)]
    gone = mine.submit("compute")
    gone.result(60)
    gone.purge()
    answers = mine.results([first, mine.submit_call(len, "abc"), second, mine.submit_call(int, "x"), first, gone, InvalidRequest("no")])
    assert [answers[index]["value"] for index in (0, 2, 4)] == [2, 4, 2]
    assert answers[1] == 3
    assert [type(answers[index]) for index in (3, 5, 6)] == [TaskFailed, TaskNotFound, InvalidRequest]
    assert mine.results([]) == []


def test_iterators_follow_pages_and_output(mine: Client) -> None:
    ids = [each.id for each in mine.submit_batch([{"operation": "compute"}] * 5) if isinstance(each, TaskHandle)]
    assert [task.task_id for task in mine.iter_tasks(limit=2, name=mine.options.name)] == ids[::-1]
    handle = mine.submit_code("import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.2)")
    assert "".join(item.text or "" for item in handle.iter_output()) == "0\n1\n2\n"


def test_asynchronous_batch_and_iterators(mine: Client) -> None:
    async def run() -> None:
        outcomes = await mine.aio.submit_batch([{"operation": "compute"}, {"operation": "unknown"}])
        assert isinstance(outcomes[0], AsyncTaskHandle)
        assert await outcomes[0] is not None
        assert isinstance(outcomes[1], UnknownOperation)
        assert [type(each) for each in await mine.aio.results(outcomes)] == [dict, UnknownOperation]
        code = await mine.aio.submit("python", code="print('héllo')")
        assert [item.text async for item in code.iter_output()] == ["héllo\n"]
        assert len([task async for task in mine.aio.iter_tasks(limit=1, name=mine.options.name)]) == 2

    asyncio.run(run())
