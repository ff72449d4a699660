"""Resubmission of tasks, over HTTP and embedded."""

from __future__ import annotations

import numpy as np
import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.errors import InvalidRequest, TaskFailed, TaskNotFound


def test_a_task_is_done_again_with_its_options_but_for_the_given_ones(client: Client) -> None:
    first = client.with_options(name="mine", priority=7, timeout=60).submit("matrix_multiply", size=8)
    first.result(timeout=60)
    second = client.again(first.id, priority=2)
    assert second.id != first.id
    assert second.result(timeout=60)["m"] == 8
    record = second.task
    assert (record.name, record.priority, record.timeout, record.operation) == ("mine", 2, 60, "matrix_multiply")
    assert client.cancel(first.id[:-1]).task_id == first.id
    assert client.again(first.id[:-1], device="cpu").task.device_preference == "cpu"


def test_calls_and_code_are_done_again_with_what_they_were_given(client: Client) -> None:
    factor = 7
    call = client.submit_call(lambda number: number * factor, 6)
    assert call.result(timeout=60) == 42
    assert client.again(call.id).result(timeout=60) == 42
    code = client.submit_code("twice = 2 * n", {"n": 3}, ("twice",))
    code.result(timeout=60)
    assert client.again(code.id).result(timeout=60) == {"twice": 6}


async def test_coroutines_have_it_too(client: Client) -> None:
    async with client.aio as aio:
        first = await aio.submit_call(abs, -3)
        assert await first == 3
        assert await (await aio.again(first.id)) == 3


def test_arrays_that_are_gone_are_told_with_what_to_do(client: Client) -> None:
    handle = client.submit_call(np.negative, np.ones(500_000))
    handle.result(timeout=60)
    with pytest.raises(InvalidRequest, match="run its cell or call again"):
        client.again(handle.id)


def test_failed_task_keeps_its_arrays_for_a_retry(client: Client) -> None:
    handle = client.submit_call(lambda numbers: numbers.nothing, np.ones(500_000))
    for _ in range(2):
        with pytest.raises(TaskFailed, match="nothing"):
            handle.result(timeout=60)
        handle = client.again(handle.id)
    with pytest.raises(TaskFailed, match="nothing"):
        handle.result(timeout=60)


def test_what_never_was_is_not_done_again(client: Client) -> None:
    with pytest.raises(TaskNotFound):
        client.again("task_nobody")
    with pytest.raises(TypeError):
        client.again("task_nobody", colour="red")
