"""Executor of a runtime, over HTTP and embedded."""

from __future__ import annotations

import asyncio
import functools
import operator
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed, wait
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

import dask
import numpy as np
import pytest
from dask.delayed import delayed

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.code.futures import TaskFuture
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.errors import NotConnected, TaskFailed, TaskNotFound, UnknownDevice
from openruntime_jupyter.schemas.endpoints import COLLECT_RESULTS, GET_TASK, SUBMIT_BATCH
from tests.client.conftest import intercept, over_http
from tests.support import wait_until
from tests.work import add, fails, invert, nap, square


@pytest.mark.every_engine
def test_calls_are_tasks_and_their_futures_bring_the_values(client: Client) -> None:
    with client.executor(name="squares") as executor:
        futures = [executor.submit(square, number) for number in range(6)]
        assert [future.result(30) for future in futures] == [number * number for number in range(6)]
        assert {future.result() for future in as_completed(futures, 30)} == {number * number for number in range(6)}
        assert client.task(futures[0].handle.id).task.name == "squares"


@over_http
@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_keeps_the_order_whatever_the_chunks(client: Client, chunksize: int) -> None:
    with client.executor() as executor:
        assert list(executor.map(add, range(10), range(10, 30), chunksize=chunksize, timeout=30)) == list(range(10, 30, 2))
        assert list(executor.map(square, [], chunksize=chunksize)) == []


@over_http
def test_a_chunk_has_at_least_one_item(client: Client) -> None:
    with client.executor() as executor, pytest.raises(ValueError, match="at least 1"):
        executor.map(square, [1], chunksize=0)


@pytest.mark.every_engine
def test_a_future_can_be_cancelled_while_its_task_runs_or_waits(client: Client) -> None:
    with client.executor() as executor:
        running, waiting = executor.submit(nap, 600), executor.submit(nap, 600)
        wait_until(running.running, 30, "the first to run")
        assert not waiting.running()
        assert waiting.cancel()
        assert running.cancel()
        assert running.cancelled()
        with pytest.raises(CancelledError):
            running.result(0)
        assert wait([running, waiting], 5, FIRST_COMPLETED).done == {running, waiting}
        done = executor.submit(square, 3)
        assert done.result(30) == 9
        assert not done.cancel(), "it has ended"


def test_a_task_that_is_cancelled_elsewhere_cancels_its_future(client: Client) -> None:
    with client.executor() as executor:
        future = executor.submit(nap, 600)
        client.cancel(future.handle.id)
        with pytest.raises(CancelledError):
            future.result(30)


@over_http
def test_a_shutdown_waits_for_what_was_submitted_and_takes_nothing_more(client: Client) -> None:
    executor = client.executor()
    futures = [executor.submit(nap, 0.05) for _ in range(3)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(square, 1)
    executor.shutdown()


def test_a_shutdown_can_cancel_what_is_left_and_leaves_no_thread(client: Client) -> None:
    executor = client.executor()
    futures = [executor.submit(nap, 600) for _ in range(3)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    names = ("openruntime-events", "openruntime-results")
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(names)], what="the end of the threads")


@over_http
def test_an_executor_that_was_never_used_shuts_down(client: Client) -> None:
    with client.executor():
        pass


@over_http
def test_a_result_that_a_lost_connection_kept_back_is_fetched_when_the_runtime_is_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.executor() as executor:
        completions = executor._completions
        with monkeypatch.context() as patch:
            patch.setattr(TaskHandle, "result", _unreachable)
            intercept(patch, client.backend, COLLECT_RESULTS, _unreachable)
            future = executor.submit(square, 4)
            wait_until(lambda: client.task(future.handle.id).status == "completed", 30, "the end of the task")
            completions._settle(future.handle.id, future)
            assert not future.done(), "the task is well: only its result is not here yet"
        completions._on_event({"type": "connected", "gap": True})
        assert future.result(30) == 16


def _unreachable(*_: object) -> None:
    raise NotConnected("gone for a moment")


@over_http
def test_a_task_that_was_erased_is_told_to_who_waits_for_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with client.executor() as executor:
        with monkeypatch.context() as patch:
            patch.setattr(TaskHandle, "result", _unreachable)
            intercept(patch, client.backend, COLLECT_RESULTS, _unreachable)
            future = executor.submit(square, 4)
            wait_until(lambda: client.task(future.handle.id).status == "completed", 30, "the end of the task")
            client.task(future.handle.id).purge()
        executor._completions._on_event({"type": "connected", "gap": True})
        with pytest.raises(TaskNotFound):
            future.result(30)


@over_http
async def test_coroutines_hand_it_work_as_to_any_executor(client: Client) -> None:
    loop = asyncio.get_running_loop()
    with client.executor() as executor:
        assert await asyncio.gather(*(loop.run_in_executor(executor, square, number) for number in range(4))) == [0, 1, 4, 9]
        endless = loop.run_in_executor(executor, nap, 600)
        endless.cancel()
        await asyncio.wait({endless})  # the loop propagates the cancellation
        assert endless.cancelled()


@over_http
def test_the_usual_idioms_hold(client: Client) -> None:
    called: list[int] = []
    with client.executor() as executor:
        future = executor.submit(square, 6)
        future.add_done_callback(lambda done: called.append(done.result()))
        done, left = wait([future, executor.submit(fails), napping := executor.submit(nap, 600)], 60, FIRST_EXCEPTION)
        assert napping in left
        assert any(each.exception() for each in done)
        napping.cancel()
        wait_until(lambda: called == [36], 30, "the callback")
        mapped = executor.map(nap, [600], timeout=0.2)
        with pytest.raises(NotInTime):
            next(mapped)
        answers = executor.map(invert, [1.0, 0.0])
        assert next(answers) == 1.0
        with pytest.raises(TaskFailed, match="ZeroDivisionError"):
            next(answers)
        executor.shutdown(wait=True, cancel_futures=True)


@over_http
def test_whatever_can_be_called_is_a_task(client: Client) -> None:
    with client.executor() as executor:
        power, upper = executor.submit(functools.partial(pow, 2), 5), executor.submit(operator.methodcaller("upper"), "abc")
        assert (power.result(30), upper.result(30), executor.submit(lambda: 7).result(30)) == (32, "ABC", 7)
        assert list(executor.map(operator.add, range(4), range(4), chunksize=3, timeout=30)) == [0, 2, 4, 6]


@over_http
def test_what_a_call_raised_is_caught_as_what_it_was(client: Client) -> None:
    with client.executor() as executor:
        with pytest.raises(ZeroDivisionError, match="by nought") as caught:
            executor.submit(fails).result(30)
        assert isinstance(caught.value, TaskFailed)
        assert caught.value.task is not None
        assert "In the worker:" in str(caught.value)
        with pytest.raises(ZeroDivisionError):
            list(executor.map(invert, [1.0, 0.0], chunksize=2, timeout=30))
        with pytest.raises(FileNotFoundError):
            executor.submit(open, "a file that is not there").result(30)
        with pytest.raises(TaskFailed, match="UnicodeDecodeError") as plain:
            executor.submit(bytes.decode, b"\xff", "utf-8").result(30)
        assert not isinstance(plain.value, UnicodeDecodeError), "which can't be made of its message alone"


@over_http
def test_dask_computes_by_it(client: Client) -> None:
    with client.executor() as executor, dask.config.set(scheduler=executor):
        assert delayed(sum)([delayed(square)(number) for number in range(5)]).compute() == 30
        assert client.tasks(limit=1).tasks[0].operation == "call"
        with pytest.raises(ZeroDivisionError, match="by nought"):
            delayed(fails)().compute()


def parameters_of(client: Client, future: TaskFuture) -> dict[str, Any]:
    return client.backend.call(GET_TASK, future.handle.id).parameters or {}


@over_http
def test_calls_made_during_a_request_go_together_with_the_next_one(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    sending, go_on = threading.Event(), threading.Event()

    def hold(body: Any) -> None:
        groups.append(len(body["tasks"]))
        sending.set()
        assert go_on.wait(60)

    intercept(monkeypatch, client.backend, SUBMIT_BATCH, hold)
    with client.executor() as executor:
        futures = [executor.submit(square, 0)]
        assert sending.wait(60)
        futures += [executor.submit(square, number) for number in range(1, 8)]
        assert not any(future.done() or future.running() for future in futures)
        go_on.set()
        assert [future.result(60) for future in futures] == [number * number for number in range(8)]
    assert groups == [1, 7]


def test_refusal_by_the_runtime_is_the_exception_of_its_future_alone(client: Client) -> None:
    with client.executor(device="device_77") as executor:
        refused = executor.submit(square, 1)
        assert isinstance(refused.exception(60), UnknownDevice)
        with pytest.raises(UnknownDevice):
            refused.handle  # noqa: B018
        assert not refused.cancel()


@over_http
def test_failed_request_is_the_exception_of_its_futures(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with client.executor() as executor:
        with monkeypatch.context() as patch:
            intercept(patch, client.backend, SUBMIT_BATCH, _unreachable)
            assert isinstance(executor.submit(square, 1).exception(60), NotConnected)
        assert executor.submit(square, 2).result(60) == 4


@over_http
def test_calls_of_one_function_share_a_burst_while_one_is_unfinished(client: Client) -> None:
    with client.executor() as executor:
        holder = executor.submit(nap, 600)
        first, other, second = executor.submit(square, 1), executor.submit(add, 1, 2), executor.submit(square, 2)
        one, two, three = (parameters_of(client, each)["burst"] for each in (first, second, other))
        assert one == two
        assert len({one, three, parameters_of(client, holder)["burst"]}) == 3
        holder.cancel()
        assert (first.result(60), second.result(60), other.result(60)) == (1, 4, 3)
        later = executor.submit(square, 3)
        assert parameters_of(client, later)["burst"] not in (one, three)


@over_http
def test_function_with_other_variables_is_another_burst(client: Client) -> None:
    factor, table = 1, np.arange(100_000.0)
    with client.executor() as executor:
        holder = executor.submit(nap, 600)
        calls = [executor.submit(lambda: factor)]
        factor = 2
        calls += [executor.submit(lambda: factor), executor.submit(lambda: float(table[1])), executor.submit(lambda: float(table[1]))]
        bursts = {parameters_of(client, each)["burst"] for each in calls}
        holder.cancel()
        assert [each.result(60) for each in calls] == [1, 2, 1.0, 1.0]
    assert len(bursts) == 4, "large arrays are not compared"


def test_large_results_and_small_ones_reach_their_futures(client: Client) -> None:
    with client.executor() as executor:
        futures = [executor.submit(operator.mul, "x", size) for size in (1, 100_000, 3)]
        assert [len(future.result(60)) for future in futures] == [1, 100_000, 3]


@over_http
def test_shutdown_sends_calls_that_wait_for_a_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    intercept(monkeypatch, client.backend, SUBMIT_BATCH, lambda _: go_on.wait(60))
    executor = client.executor()
    futures = [executor.submit(square, number) for number in range(3)]
    executor.shutdown(wait=False)
    go_on.set()
    assert [future.result(60) for future in futures] == [0, 1, 4]
