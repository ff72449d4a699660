"""`map`: ordered results and failures by index, over HTTP and embedded."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.code import map as mapping
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import InvalidRequest, MapFailed, TaskFailed, TaskNotFound, UnknownOperation, WorkerDied
from openruntime_jupyter.schemas.endpoints import ALLOCATE_ARRAY, COLLECT_RESULTS, GET_PAYLOAD, GET_TASK, SUBMIT_BATCH
from openruntime_jupyter.schemas.tasks import Task, TaskState
from tests.client.conftest import intercept, over_http
from tests.support import wait_until


def square() -> Any:
    """Return a local function, which is pickled by value."""
    factor = 1

    def square(number: int) -> int:
        return factor * number * number

    return square


@over_http
@pytest.mark.parametrize("chunk_size", [None, 3, 100])
def test_results_come_in_the_order_of_the_items(client: Client, chunk_size: int | None) -> None:
    assert client.map(square(), range(10), chunk_size) == [number * number for number in range(10)]


def test_progress_is_shown_outside_a_notebook_only_on_request(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.map(square(), range(3))
    assert capsys.readouterr().err == ""
    client.map(square(), range(3), progress=True)
    assert "square" in (shown := capsys.readouterr().err)
    assert "3 of 3" in shown


@over_http
def test_nothing_is_done_for_no_items(client: Client) -> None:
    assert client.map(square(), iter(())) == []


@over_http
def test_a_chunk_is_a_task_with_the_options_and_the_functions_name(client: Client) -> None:
    client.map(square(), range(7), chunk_size=3, priority=7, timeout=60, name="squares")
    newest = client.tasks(limit=3).tasks
    assert [(task.operation, task.name, task.priority, task.timeout) for task in newest] == [("call", "squares", 7, 60.0)] * 3
    client.map(square(), range(2))
    assert client.tasks(limit=1).tasks[0].name == "square"
    with pytest.raises(TypeError):
        client.map(square(), range(2), colour="red")


def test_by_default_each_slot_gets_a_few_tasks(client: Client) -> None:
    before = client.tasks(limit=1, operation="call").total_count
    client.map(square(), range(100))
    assert client.tasks(limit=1, operation="call").total_count - before == mapping.CHUNKS_A_SLOT


@over_http
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_items_that_fail_are_told_by_their_places_and_spoil_no_others(client: Client, chunk_size: int) -> None:
    def inverse(number: int) -> float:
        return 1 / (number % 3)

    with pytest.raises(MapFailed) as caught:
        client.map(inverse, range(8), chunk_size=chunk_size)
    failed = caught.value
    assert list(failed.failures) == [0, 3, 6]
    assert all(isinstance(problem, TaskFailed) for problem in failed.failures.values())
    assert failed.results == [None, 1.0, 0.5, None, 1.0, 0.5, None, 1.0]
    assert "3 of 8 items failed. The first, item 0: ZeroDivisionError" in str(failed)
    assert "in inverse" in str(failed.failures[6])
    task = failed.failures[6].task
    assert task is not None
    assert "Item 6 failed" in client.task(task.task_id).output.stderr


@over_http
def test_an_item_that_exits_fails_alone(client: Client) -> None:
    def exits(number: int) -> int:
        return sys.exit("enough") if number == 1 else number

    with pytest.raises(MapFailed, match="item 1: SystemExit: enough") as caught:
        client.map(exits, range(3), chunk_size=3)
    assert (list(caught.value.failures), caught.value.results) == ([1], [0, None, 2])


@over_http
def test_an_item_whose_result_cannot_travel_fails_alone(client: Client) -> None:
    def sometimes_stuck(number: int) -> Any:
        import threading

        import numpy as np

        return (threading.Lock(), np.zeros(100_000)) if number == 1 else np.full(100_000, number)

    with pytest.raises(MapFailed, match=r"item 1: TypeError: The function's result of type tuple can't be sent back: .*lock") as caught:
        client.map(sometimes_stuck, range(4), chunk_size=4)
    failed = caught.value
    assert list(failed.failures) == [1]
    assert [None if found is None else found.tolist()[-1] for found in failed.results] == [0, None, 2, 3]
    task = failed.failures[1].task
    assert task is not None
    assert "Item 1 failed" in client.task(task.task_id).output.stderr
    result = client.task(task.task_id).task.result
    assert result is not None
    assert len(result.arrays) == 3


@over_http
def test_a_chunk_whose_worker_dies_fails_alone(client: Client) -> None:
    def deadly(number: int) -> int:
        if number == 2:
            os._exit(3)
        return number

    with pytest.raises(MapFailed) as caught:
        client.map(deadly, range(6), chunk_size=2)
    assert list(caught.value.failures) == [2, 3]
    assert isinstance(caught.value.failures[2], WorkerDied)
    assert caught.value.results == [0, 1, None, None, 4, 5]


def test_the_error_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(MapFailed("1 of 2", {0: TaskFailed("no")}, [None, 1])))
    assert (str(again), list(again.failures), again.results) == ("1 of 2", [0], [None, 1])


@over_http
def test_what_cannot_travel_is_named_before_anything_is_queued(client: Client) -> None:
    lock = threading.Lock()
    before = client.tasks(limit=1).total_count
    with pytest.raises(InvalidRequest, match="lock"):
        client.map(lambda number: lock, range(3))
    assert client.tasks(limit=1).total_count == before


@over_http
@pytest.mark.parametrize("chunk_size", [0, 2.5, True])
def test_a_chunk_size_that_is_none_is_refused(client: Client, chunk_size: Any) -> None:
    with pytest.raises(InvalidRequest, match="chunk_size"):
        client.map(square(), range(3), chunk_size=chunk_size)


@over_http
def test_many_chunks_are_submitted_a_part_at_a_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "MOST_AHEAD", 6)
    assert client.map(square(), range(20), chunk_size=1) == [number * number for number in range(20)]


def test_an_interrupt_cancels_what_is_left(client: Client) -> None:
    def slow(number: int) -> int:
        import time

        from openruntime_jupyter import progress

        progress(1)
        time.sleep(60)
        return number

    client.run("compute")
    started = time.monotonic()

    def interrupt() -> None:
        wait_until(lambda: any(task.progress for task in client.tasks(limit=4, states=["running"]).tasks), 20, "the first one runs")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.map(slow, range(4), chunk_size=1)
    thread.join()
    assert time.monotonic() - started < 30
    states = {task.status for task in client.tasks(limit=4, operation="call").tasks}
    assert states == {TaskState.CANCELLED}


def test_a_batch_is_answered_item_by_item(backend: Backend) -> None:
    key = new_key()
    requests: list[dict[str, Any]] = [{"operation": "call", "parameters": {}}, {"operation": "nosuch", "parameters": {}}]
    taken, refused = backend.call(SUBMIT_BATCH, body={"tasks": requests}, key=key)
    assert isinstance(taken, Task)
    assert isinstance(refused, UnknownOperation)
    assert refused.details[0]["field"] == "operation"
    again, _ = backend.call(SUBMIT_BATCH, body={"tasks": requests}, key=key)
    assert isinstance(again, Task)
    assert again.task_id == taken.task_id


@pytest.mark.every_engine
def test_collect_brings_records_and_payloads(backend: Backend) -> None:
    requests = [{"operation": "call", "parameters": {}}, {"operation": "compute", "parameters": {}}]
    ids = [answer.task_id for answer in backend.call(SUBMIT_BATCH, body={"tasks": requests}, key=new_key()) if isinstance(answer, Task)]
    called, computed, unknown = backend.call(COLLECT_RESULTS, body={"tasks": [*ids, "task_0"], "at_least": 3}, wait=60)
    assert [called.task_id, computed.task_id, unknown.task_id] == [*ids, "task_0"]
    assert called.payload == (backend.call(GET_PAYLOAD, ids[0]), "cloudpickle")
    assert isinstance(computed.task, Task)
    assert (computed.task.status, computed.payload) == (TaskState.COMPLETED, None)
    assert isinstance(unknown.task, TaskNotFound)


@over_http
def test_function_is_pickled_once_and_its_arrays_are_sent_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled: list[int] = []
    sent: list[Any] = []
    intercept(monkeypatch, client.backend, ALLOCATE_ARRAY, sent.append)

    class Counted:
        def __reduce__(self) -> Any:
            pickled.append(1)
            return int, (5,)

    counted, table = Counted(), np.arange(100_000.0)

    def look_up(number: int) -> float:
        return float(table[number]) + int(counted)  # type: ignore[call-overload]

    assert client.map(look_up, range(6), chunk_size=2) == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert (len(pickled), len(sent)) == (1, 1)


@pytest.mark.every_engine
def test_arrays_among_the_items_go_with_their_chunks(client: Client) -> None:
    table = np.arange(100_000.0)
    items = [np.full(100_000, number) for number in range(4)]
    assert client.map(lambda item: float(table[2] + item[-1]), items, chunk_size=1) == [2.0, 3.0, 4.0, 5.0]


def test_large_results_are_fetched_one_by_one(client: Client) -> None:
    assert client.map(lambda number: "x" * number, [1, 100_000, 2], chunk_size=1) == ["x", "x" * 100_000, "xx"]


@over_http
def test_tasks_of_one_map_share_a_burst_id_of_their_own(client: Client) -> None:
    def bursts(number: int) -> list[str]:
        ids = [task.task_id for task in client.tasks(limit=number, operation="call").tasks]
        return [(client.backend.call(GET_TASK, task_id).parameters or {}).get("burst", "") for task_id in ids]

    client.map(square(), range(3), chunk_size=1)
    client.map(square(), range(3), chunk_size=1)
    second, first = bursts(6)[:3], bursts(6)[3:]
    assert len(set(first)) == len(set(second)) == 1
    assert first != second
    assert all(len(each) == 32 for each in (*first, *second))
    client.call(square(), 3)
    assert bursts(1) == [""]


def test_results_of_many_chunks_come_by_few_requests(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    intercept(monkeypatch, client.backend, COLLECT_RESULTS, lambda body: asked.append(len(body["tasks"])))
    for single in (GET_TASK, GET_PAYLOAD):
        intercept(monkeypatch, client.backend, single, lambda _: pytest.fail("a request for one task"))
    assert client.map(square(), range(200), chunk_size=1) == [number * number for number in range(200)]
    assert max(asked) <= mapping.MOST_AHEAD
    assert len(asked) <= 20


@over_http
def test_record_of_a_chunk_shows_its_first_values(client: Client) -> None:
    client.map(square(), range(100), chunk_size=100)
    (task,) = client.tasks(limit=1, operation="call").tasks
    assert task.result is not None
    assert task.result.output == {"type": "list", "repr": "[0, 1, 4, 9, 16, 25, ...]", "items": 100, "failed": 0}
