"""Asynchronous client, over HTTP and embedded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from openruntime_jupyter.client import async_base
from openruntime_jupyter.client.async_client import AsyncClient
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.errors import InvalidRequest, TaskCancelled, TaskFailed
from tests.client.conftest import over_http
from tests.runtimes import until
from tests.support import wait_until
from tests.work import fails, nap, square


@pytest.fixture
def aio(client: Client) -> AsyncClient:
    """Return the asynchronous client, which `client` closes at the end of the test."""
    return client.aio


async def test_many_tasks_are_waited_for_at_once(aio: AsyncClient) -> None:
    handles = [await aio.submit_call(square, number) for number in range(3)]
    assert await asyncio.gather(*handles) == [0, 1, 4]
    assert (await aio.run("compute", expression="sum(a)", inputs={"a": [1.0, 2.0]}))["value"] == 3.0
    assert await aio.map(square, [1, 2, 3]) == [1, 4, 9]
    assert await (await aio.task(handles[2].id)) == 4
    assert (await aio.tasks(limit=2)).tasks
    (device,) = await aio.devices()
    assert device.id.endswith("device_0")
    assert (await aio.health()).version
    assert (await aio.metrics()).uptime
    assert await aio.operations()


async def test_what_goes_wrong_is_raised_where_it_is_awaited(aio: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="size"):
        await aio.run("matrix_multiply", size=-1)
    with pytest.raises(TaskFailed, match="by nought"):
        await aio.call(fails)
    slow = await aio.submit_call(nap, 600)
    with pytest.raises(asyncio.TimeoutError):
        await slow.result(0.05)
    await slow.cancel()
    with pytest.raises(TaskCancelled):
        await slow


@over_http
async def test_a_coroutine_that_is_cancelled_cancels_the_task_that_it_waits_for(aio: AsyncClient) -> None:
    working = asyncio.ensure_future(aio.with_options(name="of a coroutine").call(nap, 600))

    async def running() -> list[str]:
        found = await aio.tasks(states=["running"])
        return [task.task_id for task in found.tasks if task.name == "of a coroutine"]

    (task_id,) = await until(running, 30, "the task to run")
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await (await aio.task(task_id)).status() == "cancelled"


@over_http
async def test_a_handle_tells_of_its_task_and_changes_it(aio: AsyncClient) -> None:
    first = await aio.submit_call(nap, 600)
    second = await aio.submit("python", code="print('hello')")
    assert (await second.set_priority(9)).priority == 9
    await first.cancel()
    assert await second == {}
    assert str(await second.output()) == "hello\n"
    assert (await second.task()).priority == 9
    assert repr(second).startswith("<AsyncTaskHandle task_")


@over_http
async def test_events_come_in_order_and_one_who_is_far_behind_is_told(aio: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_base, "MOST_UNREAD", 5)

    watching = aio.watch()
    first = await anext(watching)
    assert first["type"] == "connected"
    await aio.run("compute")
    seen = [await anext(watching)]
    assert seen[0]["type"] == "task_update"
    for _ in range(6):
        await aio.run("compute")

    async def told() -> bool:
        seen.append(await anext(watching))
        return seen[-1] == {"type": "connected", "gap": True}

    await until(told, 10, "the gap")
    await watching.aclose()  # type: ignore[attr-defined]


def test_a_client_that_is_closed_hears_no_more_for_its_coroutines_either(client: Client) -> None:
    def listeners() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "openruntime-events"]

    async def ask() -> int:
        return int(await client.aio.call(abs, -3))

    assert asyncio.run(ask()) == 3
    assert listeners()
    client.close()
    wait_until(lambda: not listeners(), what="the end of the thread")
