"""Asynchronous client, over HTTP and embedded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from openruntime_jupyter.client import async_client
from openruntime_jupyter.client.async_client import AsyncClient
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.errors import InvalidRequest, TaskCancelled, TaskFailed
from tests.client.test_executor import fails, nap, square
from tests.runtimes import until
from tests.support import wait_until

Body = Callable[[AsyncClient], Coroutine[Any, Any, None]]


@pytest.fixture
def run(client: Client) -> Callable[[Body], None]:
    """Run a test's coroutine with the client, which is closed at its end."""

    async def whole(body: Body) -> None:
        async with client.aio as opened:
            await body(opened)

    return lambda body: asyncio.run(whole(body))


def test_many_tasks_are_waited_for_at_once(run: Callable[[Body], None]) -> None:
    async def body(client: AsyncClient) -> None:
        handles = [await client.submit_call(square, number) for number in range(10)]
        assert await asyncio.gather(*handles) == [number * number for number in range(10)]
        assert await client.call(square, 11) == 121
        assert (await client.run("compute", expression="sum(a)", inputs={"a": [1.0, 2.0]}))["value"] == 3.0
        assert await client.map(square, [1, 2, 3]) == [1, 4, 9]
        assert await (await client.task(handles[3].id)) == 9
        assert (await client.tasks(limit=2)).tasks
        assert [device.id for device in await client.devices()] == ["device_0"]
        assert (await client.health()).version
        assert (await client.metrics()).uptime
        assert await client.operations()

    run(body)


def test_what_goes_wrong_is_raised_where_it_is_awaited(run: Callable[[Body], None]) -> None:
    async def body(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequest, match="size"):
            await client.run("matrix_multiply", size=-1)
        with pytest.raises(TaskFailed, match="by nought"):
            await client.call(fails)
        slow = await client.submit_call(nap, 600)
        with pytest.raises(asyncio.TimeoutError):
            await slow.result(0.05)
        await slow.cancel()
        with pytest.raises(TaskCancelled):
            await slow

    run(body)


def test_a_coroutine_that_is_cancelled_cancels_the_task_that_it_waits_for(run: Callable[[Body], None]) -> None:
    async def body(client: AsyncClient) -> None:
        working = asyncio.ensure_future(client.with_options(name="of a coroutine").call(nap, 600))

        async def running() -> list[str]:
            found = await client.tasks(states=["running"])
            return [task.task_id for task in found.tasks if task.name == "of a coroutine"]

        (task_id,) = await until(running, 30, "the task to run")
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await (await client.task(task_id)).status() == "cancelled"

    run(body)


def test_a_handle_tells_of_its_task_and_changes_it(run: Callable[[Body], None]) -> None:
    async def body(client: AsyncClient) -> None:
        first = await client.submit_call(nap, 600)
        second = await client.submit("python", code="print('hello')")
        assert (await second.set_priority(9)).priority == 9
        await first.cancel()
        assert await second == {}
        assert str(await second.output()) == "hello\n"
        assert (await second.task()).priority == 9
        assert repr(second).startswith("<AsyncTaskHandle task_")

    run(body)


def test_events_come_in_order_and_one_who_is_far_behind_is_told(run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_client, "MOST_UNREAD", 5)

    async def body(client: AsyncClient) -> None:
        watching = client.watch()
        first = await anext(watching)
        assert first["type"] == "connected"
        await client.call(square, 2)
        seen = [await anext(watching)]
        assert seen[0]["type"] == "task_update"
        for number in range(12):
            await client.call(square, number)

        async def told() -> bool:
            seen.append(await anext(watching))
            return seen[-1] == {"type": "connected", "gap": True}

        await until(told, 10, "the gap")
        await watching.aclose()  # type: ignore[attr-defined]

    run(body)


def test_a_client_that_is_closed_hears_no_more_for_its_coroutines_either(client: Client) -> None:
    def listeners() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "openruntime-events"]

    async def ask() -> int:
        return int(await client.aio.call(abs, -3))

    assert asyncio.run(ask()) == 3
    assert listeners()
    client.close()
    wait_until(lambda: not listeners(), what="the end of the thread")
