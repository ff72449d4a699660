"""Contract of the client, over HTTP and embedded."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import TaskHandle
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import (
    InvalidRequest,
    ModelNotFound,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TaskTimedOut,
    UnknownDevice,
    UnknownOperation,
    WorkerDied,
    WouldDeadlock,
)
from openruntime_jupyter.schemas.endpoints import GET_TASK, SUBMIT_FOLLOWED, SUBMIT_TASK
from openruntime_jupyter.schemas.tasks import OutputItem, TaskOrder, TaskState
from tests.client.conftest import over_http
from tests.support import Server, wait_until


def sleeper(seconds: float) -> Any:
    """Return a slow function, defined locally so that it is pickled by value."""

    def sleep() -> float:

        from openruntime_jupyter import progress

        progress(1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return seconds

    return sleep


def running(handle: TaskHandle) -> TaskHandle:
    """Return `handle` once the `sleeper` of its task runs."""
    wait_until(lambda: handle.progress, 20, lambda: f"{handle} runs")
    return handle


@contextmanager
def busy(client: Client) -> Iterator[TaskHandle]:
    """Occupy the only slot."""
    handle = running(client.submit_call(sleeper(60)))
    try:
        yield handle
    finally:
        handle.cancel()


@pytest.mark.every_engine
def test_an_operation_returns_its_output(client: Client) -> None:
    output = client.run("matrix_multiply", size=64, iterations=2)
    assert output["gflops"] > 0


@pytest.mark.every_engine(dask=True)
def test_a_function_of_this_process_is_computed_elsewhere(client: Client) -> None:
    factor = 3

    def work(number: int, *, plus: int) -> tuple[int, int]:
        import os

        return number * factor + plus, os.getpid()

    value, pid = client.call(work, 13, plus=3)
    assert value == 42
    assert pid != os.getpid()


@pytest.mark.every_engine(dask=True)
def test_code_gets_its_inputs_and_gives_its_outputs(client: Client) -> None:
    code = "import sys\ntotal = sum(numbers)\nprint('one', flush=True)\nprint('two', file=sys.stderr)"
    handle = client.submit_code(code, {"numbers": [1, 2, 3]}, ("total",))
    assert handle.result(timeout=30) == {"total": 6}
    assert (handle.output.stdout, handle.output.stderr, str(handle.output)) == ("one\n", "two\n", "one\ntwo\n")


@pytest.mark.every_engine
def test_code_runs_in_the_folder_and_interpreter_of_the_caller(client: Client) -> None:
    import sys

    handle = client.submit_code("import os, sys\nplace = os.getcwd(), sys.executable", {}, ("place",))
    assert handle.result(timeout=60)["place"] == (os.getcwd(), sys.executable)


@pytest.mark.every_engine(dask=True)
def test_what_a_task_raises_comes_with_its_own_traceback(client: Client) -> None:
    def divide() -> float:
        return 1 / 0

    with pytest.raises(TaskFailed, match="division by zero") as caught:
        client.call(divide)
    assert "ZeroDivisionError" in str(caught.value)
    assert "in divide" in str(caught.value)
    assert caught.value.task is not None
    assert caught.value.task.failure is not None
    assert caught.value.task.failure.type == "ZeroDivisionError"


@pytest.mark.every_engine(dask=True)
def test_a_worker_that_is_killed_is_told_from_a_task_that_fails(client: Client) -> None:
    def die() -> None:
        import os
        import signal
        import sys

        sys.stdout.write("these are my last words\n")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied, match="signal 9") as caught:
        client.call(die)
    assert "these are my last words" in str(caught.value)


@pytest.mark.every_engine
def test_a_task_past_its_timeout_is_stopped(client: Client) -> None:
    with pytest.raises(TaskTimedOut, match="timeout"):
        client.with_options(timeout=0.3).call(sleeper(30))


def test_waiting_for_a_result_can_run_out_while_the_task_goes_on(client: Client) -> None:
    handle = client.submit_call(sleeper(30))
    with pytest.raises(TimeoutError, match=handle.id):
        handle.result(timeout=0.2)
    assert not handle.status.terminal
    handle.cancel()


@pytest.mark.every_engine(dask=True)
def test_a_cancelled_task_says_so(client: Client) -> None:
    handle = running(client.submit_call(sleeper(30)))
    assert handle.cancel().status is TaskState.CANCELLED
    assert handle.status is TaskState.CANCELLED
    with pytest.raises(TaskCancelled) as caught:
        handle.result()
    assert caught.value.task is not None
    assert caught.value.task.cancel_stage == "interrupt"


@over_http
def test_a_waiting_task_knows_its_place_and_can_be_moved_forward(client: Client) -> None:
    with busy(client):
        first, second = client.submit_call(sleeper(0)), client.submit_call(sleeper(0))
        assert (first.task.position, second.task.position) == (1, 2)
        assert second.set_priority(9).priority == 9
        assert (first.task.position, second.task.position) == (2, 1)
        first.cancel()
        second.cancel()


@pytest.mark.every_engine
def test_progress_is_seen_while_the_task_runs(client: Client) -> None:
    def work() -> None:

        from openruntime_jupyter import progress

        progress(3, 10, "a third")
        time.sleep(60)

    handle = client.submit_call(work)
    seen = wait_until(lambda: handle.progress, 20, "progress")
    assert (seen.n, seen.total, seen.message) == (3, 10, "a third")
    handle.cancel()


def test_submitting_can_return_what_the_task_shows_at_once(client: Client) -> None:
    waiting = client.submit_code("import time; time.sleep(60)", follow=0.05)
    assert not waiting.follow_output().finished
    waiting.cancel()
    ended = client.submit_code("print(6 * 7); x = 1", outputs=("x",), follow=30)
    items: list[OutputItem] = []
    since, finished = 0, False
    while not finished:
        shown = ended.follow_output(since, wait=30)
        items, since, finished = [*items, *shown.items], shown.next, shown.finished
    assert [(item.name, item.text) for item in items] == [("stdout", "42\n")]
    assert ended.last_seen.status is TaskState.COMPLETED
    assert ended.result() == {"x": 1}


def test_same_key_gives_the_same_followed_task(client: Client) -> None:
    request = {"operation": "python", "parameters": {"code": "print(6 * 7)"}}
    key = new_key()
    first = client.backend.call(SUBMIT_FOLLOWED, body=request, key=key, wait=30)
    again = client.backend.call(SUBMIT_FOLLOWED, body=request, key=key, wait=30)
    assert (again.task_id, client.backend.call(SUBMIT_TASK, body=request, key=key).task_id) == (first.task_id, first.task_id)
    with pytest.raises(InvalidRequest):
        client.backend.call(SUBMIT_FOLLOWED, body={**request, "priority": 9}, key=key, wait=0)


@over_http
def test_asking_for_output_returns_as_soon_as_the_task_ends(client: Client) -> None:
    handle = running(client.submit_call(sleeper(0.5)))
    started = time.monotonic()
    assert handle.follow_output(0, wait=60).finished
    assert time.monotonic() - started < 50, "it returned before the timeout"


def test_a_task_is_found_again_by_its_id(client: Client) -> None:
    handle = client.with_options(name="to be found").submit_call(sleeper(0))
    assert handle.result(timeout=30) == 0
    again = client.task(handle.id)
    assert again.result() == 0
    assert again.task.name == "to be found"
    assert handle.id in [task.task_id for task in client.tasks(limit=5).tasks]


def test_pages_of_tasks_can_be_filtered_and_turned(client: Client) -> None:
    client.run("matrix_multiply", size=8)
    client.run("matrix_multiply", size=8)
    first = client.tasks(limit=1, states=["completed"], operation="matrix_multiply")
    assert first.total_count >= 2
    second = client.tasks(limit=1, before=first.next_before, states=["completed"], operation="matrix_multiply")
    assert first.tasks[0].task_id > second.tasks[0].task_id


@over_http
def test_what_waits_is_listed_with_the_next_one_first(client: Client) -> None:
    with busy(client):
        later, sooner = (client.with_options(priority=priority).submit("matrix_multiply", size=8) for priority in (2, 9))
        assert [task.task_id for task in client.tasks(order="next").tasks] == [sooner.id, later.id]
        assert [task.task_id for task in client.tasks(1, offset=1, order="next").tasks] == [later.id]
        with pytest.raises(InvalidRequest, match="`next`"):
            client.tasks(order="next", operation="call")


def test_tasks_are_found_by_notebook_and_name(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = "/work/Über [1].ipynb", "/work/other.ipynb"
    monkeypatch.setenv("JPY_SESSION_NAME", here)
    ended = client.with_options(name="Épreuve 100%_a").submit("matrix_multiply", size=8)
    ended.result(timeout=30)
    with busy(client):
        first, second = (client.with_options(name=f"Waits 100%_{number}").submit("matrix_multiply", size=8) for number in (1, 2))
        monkeypatch.setenv("JPY_SESSION_NAME", elsewhere)
        other = client.with_options(name="waits 100%_3").submit("matrix_multiply", size=8)

        def ids(order: TaskOrder = "newest", **wanted: Any) -> list[str]:
            page = client.tasks(order=order, **wanted)
            assert page.total_count >= len(page.tasks)
            return [task.task_id for task in page.tasks]

        assert ids(name="ÉPREUVE", notebook=here) == [ended.id]
        assert ids(name="100%_", notebook=here) == [second.id, first.id, ended.id]
        assert ids(name="100%_", states=["pending"]) == [other.id, second.id, first.id]
        assert ids("next", name="WAITS") == [first.id, second.id, other.id]
        assert ids("next", name="waits", limit=1, offset=1) == [second.id]
        assert client.tasks(order="next", notebook=here, limit=1).total_count == 2
        assert client.tasks(notebook=here, name="waits", limit=1).total_count == 2
        assert ids("next", notebook=elsewhere) == [other.id]
        assert ids(name="waits%") == ids("next", name="w_its") == ids(notebook="other.ipynb") == []
        assert first.task.notebook == here
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert client.again(ended.id).task.notebook is None
    assert client.submit("matrix_multiply", size=8).task.notebook is None


def test_a_task_describes_its_work_without_large_values_and_variables(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_VARIABLE_OF_THE_CALLER", "not for display")

    def total(array: Any, factor: int) -> float:
        return float(array.sum() * factor)

    call = client.submit_call(total, np.ones(500_000), 2)
    assert call.result(timeout=30) == 1_000_000
    given = call.described().parameters or {}
    assert given["function"].endswith("total")
    assert given["location"] == f"{__file__}, line {total.__code__.co_firstlineno}"
    assert all(part in given["arrays"][0] for part in ("float64", "500,000", "4.00 MB"))
    code = client.submit_code("left = sum(numbers)", {"numbers": list(range(100_000))}, ("left",))
    code.result(timeout=30)
    given = code.described().parameters or {}
    assert (given["code"], given["outputs"]) == ("left = sum(numbers)", ["left"])
    for handle in (call, code):
        assert "A_VARIABLE_OF_THE_CALLER" in handle._backend.call(GET_TASK, handle.id).model_dump_json()
        shown = handle.described().model_dump_json()
        assert "not for display" not in shown
        assert len(shown) < 5_000
        assert handle.last_seen.parameters is None


def test_an_ended_task_can_be_erased(client: Client) -> None:
    handle = client.submit_call(sleeper(0))
    handle.result(timeout=30)
    handle.purge()
    with pytest.raises(TaskNotFound):
        client.task(handle.id)


@pytest.mark.parametrize("task_id", ["task_nobody", "../health", "", "a b?c#d"])
def test_an_unknown_id_is_not_found(client: Client, task_id: str) -> None:
    with pytest.raises(TaskNotFound):
        client.task(task_id)


def test_wrong_requests_say_which_field_is_wrong(client: Client) -> None:
    with pytest.raises(UnknownOperation, match="no_such_thing"):
        client.submit("no_such_thing")
    with pytest.raises(UnknownDevice, match="device_99"):
        client.with_options(device="device_99").submit("matrix_multiply")
    with pytest.raises(InvalidRequest) as caught:
        client.submit("matrix_multiply", sise=3)
    assert [detail["field"] for detail in caught.value.details] == ["parameters.sise"]
    with pytest.raises(InvalidRequest, match="priority"):
        client.with_options(priority=11).submit("matrix_multiply")
    with pytest.raises(InvalidRequest):
        client.submit("matrix_multiply", size=float("nan"))
    with pytest.raises(InvalidRequest):
        client.submit("matrix_multiply", size=object())


def test_the_same_key_gives_the_same_task(backend: Backend) -> None:
    key, request = new_key(), {"operation": "matrix_multiply", "parameters": {"size": 8}}
    first = backend.call(SUBMIT_TASK, body=request, key=key)
    again = backend.call(SUBMIT_TASK, body=request, key=key, wait=20)
    assert (again.task_id, again.status) == (first.task_id, TaskState.COMPLETED)


@pytest.mark.every_engine
def test_interrupting_a_call_cancels_its_task(client: Client) -> None:
    named = client.with_options(name=f"interrupted {new_key()}")

    def states() -> list[TaskState]:
        return [task.status for task in client.tasks(limit=5).tasks if task.name == named.options.name]

    def interrupt() -> None:
        wait_until(lambda: states() == [TaskState.RUNNING], 20, "the task runs")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        named.call(sleeper(60))
    thread.join()
    assert states() == [TaskState.CANCELLED]


def test_several_threads_may_use_one_client(client: Client) -> None:
    found: list[int] = []

    def ask(number: int) -> None:
        found.append(client.call(sleeper(number / 100)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [number / 100 for number in range(3)]


def test_the_runtime_describes_itself(client: Client) -> None:
    assert client.health().status == "healthy"
    assert [device.type for device in client.devices()]
    assert client.metrics().uptime
    described = {operation.name: operation for operation in client.operations()}
    assert described["call"].needs_execute
    assert "size" in described["matrix_multiply"].parameters_schema["properties"]


def test_a_task_does_not_wait_for_its_own_lane(client: Client, request: pytest.FixtureRequest) -> None:
    where = client.where
    token = request.getfixturevalue("server").token if where != "embedded" else None

    def nested() -> str:
        from openruntime_jupyter import connect

        return str(connect(None if where == "embedded" else where, token).run("matrix_multiply", size=8))

    with pytest.raises(TaskFailed, match="WouldDeadlock") as caught:
        client.call(nested)
    assert caught.value.task is not None
    assert caught.value.task.failure is not None
    assert caught.value.task.failure.type == WouldDeadlock.__name__


def test_a_task_may_hand_on_work_to_a_server_without_waiting_for_it(server: Server) -> None:
    where, token = server.url, server.token

    def nested() -> str:
        from openruntime_jupyter import connect

        return str(connect(where, token).submit("matrix_multiply", size=8).id)

    with Client(HttpBackend(where, token)) as client:
        assert client.task(client.call(nested)).result(timeout=30)["gflops"] > 0


@over_http
def test_looking_at_a_task_again_and_again_does_not_move_its_parameters(client: Client) -> None:
    handle = client.submit_code("1", {"large": b"x" * 1_000_000})
    handle.result(timeout=30)
    assert client.backend.call(GET_TASK, handle.id).parameters is not None
    assert client.task(handle.id).task.parameters is None
    assert client.backend.call(GET_TASK, handle.id, query={"parameters": False}, wait=1).parameters is None


@over_http
def test_a_call_is_named_after_its_function_unless_it_has_a_name(client: Client) -> None:
    handle = client.submit_call(sleeper(0))
    assert handle.task.name == "sleep"
    assert client.with_options(name="mine").submit_call(sleeper(0)).task.name == "mine"
    assert client.submit_call(lambda: 1).task.name is None


@over_http
def test_figures_models_and_insights_are_told(client: Client) -> None:
    client.run("matrix_multiply", size=8)
    history = client.metrics_history("5m", 50)
    assert len(history.timestamps) <= 50
    assert set(history.series) >= {"active_tasks", "memory_usage"}
    assert all(len(series.mean) == len(history.timestamps) for series in history.series.values())
    found = client.insights("performance", "5m")
    assert found.insights
    assert found.findings
    assert client.workers()
    names = [model.name for model in client.models().models]
    with pytest.raises(ModelNotFound, match="nothing_like_it"):
        client.unload("nothing_like_it")
    assert "nothing_like_it" not in names


def test_unique_beginning_of_an_id_finds_the_task(client: Client) -> None:
    first, second = (client.submit_call(abs, -number) for number in (1, 2))
    assert client.task(first.id[:-2]).result(timeout=60) == 1
    with pytest.raises(TaskNotFound, match="tasks have an id"):
        client.task(second.id[:10])
    with pytest.raises(TaskNotFound):
        client.task("task_nobody")
