"""Client sessions, over HTTP and embedded."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import InvalidRequest, SessionEnded, SessionNotFound, TaskCancelled, WorkerDied
from openruntime_jupyter.schemas.endpoints import FREE_SESSION, LIST_SESSIONS
from tests.client.conftest import over_http
from tests.support import wait_until
from tests.work import nap


@pytest.fixture
def client(backend: Backend) -> Iterator[Client]:
    """Return a client of each backend, and free the test's sessions at the end."""
    with Client(backend) as client:
        yield client
    for each in backend.call(LIST_SESSIONS):
        backend.call(FREE_SESSION, each.id)


def value_of(client: Client, expression: str, session: str = "train") -> object:
    return client.session(session).run_code(f"shown = {expression}", outputs=("shown",))["shown"]


@pytest.mark.every_engine
def test_cells_and_calls_share_variables(client: Client) -> None:
    train = client.session("train")
    train.run_code("model, steps = [1, 2], 0", {})

    def step() -> int:
        model.append(3)  # type: ignore[name-defined] # noqa: F821
        return len(model)  # type: ignore[name-defined] # noqa: F821

    assert (train.call(step), train.submit_call(step).result()) == (3, 4)
    assert train.run_code("copy = model", outputs=("copy",)) == {"copy": [1, 2, 3, 3]}
    assert train.submit_code("steps += 1").wait(60).session_name == "train"
    assert repr(train).startswith("<session 'train' at ")
    assert (train.info.name, train.info.state, train.info.tasks) == ("train", "idle", 5)
    assert [each.id for each in client.sessions()] == [train.info.id]


@over_http
def test_options_reach_tasks_of_a_session(client: Client) -> None:
    named = client.with_options(session="train", name="first step", timeout=60)
    task = named.submit_code("x = 1").wait(60)
    assert (task.name, task.timeout, task.session_name) == ("first step", 60.0, "train")
    assert value_of(client, "x") == 1


@over_http
def test_map_and_executor_run_in_the_session(client: Client) -> None:
    client.session("train").run_code("offset = 10")
    inside = client.with_options(session="train")

    def moved(number: int) -> int:
        return offset + number  # type: ignore[name-defined] # noqa: F821

    assert inside.map(moved, range(4), chunk_size=2) == [10, 11, 12, 13]
    with inside.executor() as executor:
        assert list(executor.map(moved, range(3))) == [10, 11, 12]


@over_http
def test_context_manager_frees_the_session(client: Client) -> None:
    with client.session("train") as train:
        pid = train.call(os.getpid)
        assert train.info.worker is not None
    assert client.sessions() == []
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20, "the worker's end")
    with pytest.raises(SessionNotFound, match="no session 'train'; open sessions: none"):
        _ = train.info
    with client.session("never used"):
        pass
    train.free()


@over_http
def test_free_by_name_spares_other_notebooks(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/a.ipynb")
    client.session("train").run_code("x = 'a'")
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/b.ipynb")
    other = Client(client.backend)
    with other.session("train"):
        pass
    with pytest.raises(SessionNotFound, match=r"other notebooks have session_\w+ \(train, /work/a.ipynb\): give the id"):
        other.free_session("train")
    other.session("train").run_code("x = 'b'")
    assert other.restart_session("train").notebook == "/work/b.ipynb"
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/a.ipynb")
    assert value_of(client, "x") == "a"
    (foreign,) = [each for each in client.sessions() if each.notebook == "/work/b.ipynb"]
    assert client.free_session(foreign.id).id == foreign.id


@over_http
def test_restart_empties_the_namespace(client: Client) -> None:
    train = client.session("train")
    train.run_code("x = 1")
    before = train.info.id
    assert train.restart().id == before
    assert value_of(client, "'x' in globals()") is False


@over_http
def test_ended_session_raises_until_restarted(client: Client) -> None:
    train = client.session("train")
    os.kill(train.call(os.getpid), signal.SIGKILL)
    wait_until(lambda: train.info.state == "ended", 20, "its end")
    for _ in range(2):
        with pytest.raises(SessionEnded, match="signal 9"):
            train.run_code("1")
    train.restart()
    train.run_code("x = 1")


@over_http
def test_cancelled_call_keeps_the_session(client: Client) -> None:
    train = client.session("train")
    train.run_code("x = 1")
    handle = train.submit_code("import time\nx = 2\nprint('in', flush=True)\nwhile True: time.sleep(0.01)")
    wait_until(lambda: "in" in handle.output.stdout, 30, "the running cell")
    handle.cancel()
    with pytest.raises(TaskCancelled):
        handle.result()
    assert value_of(client, "x") == 2


@over_http
def test_freed_session_raises_once(client: Client) -> None:
    train = client.session("train")
    train.run_code("x = 1")
    client.backend.call(FREE_SESSION, train.info.id)
    with pytest.raises(SessionEnded, match=r"freed, or its runtime was restarted\. The next task"):
        train.run_code("x")
    assert value_of(client, "'x' in globals()") is False


@over_http
def test_map_in_a_freed_session_raises_once(client: Client) -> None:
    inside = client.with_options(session="train")
    assert inside.map(abs, [-1]) == [1]
    client.backend.call(FREE_SESSION, inside.session("train").info.id)
    with pytest.raises(SessionEnded, match="freed"):
        inside.map(abs, [-1])
    assert inside.map(abs, [-1]) == [1]


def test_wrong_use_is_no_ended_session(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="only python and call") as caught:
        client.with_options(session="train").run("compute", expression="1")
    assert not isinstance(caught.value, SessionEnded)
    with pytest.raises(InvalidRequest, match="not a valid name") as caught:
        client.session("\n").run_code("1")
    assert not isinstance(caught.value, SessionEnded)
    assert client.sessions() == []


@over_http
def test_reload_follows_changed_files(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "rates_of_training.py"
    module.write_text("def rate(): return 1")
    plain, fresh = client.session("plain"), client.session("fresh", reload=True)
    for each in (plain, fresh):
        each.run_code("import rates_of_training as rates")
    module.write_text("def rate(): return 23")
    assert value_of(client, "rates.rate()", "plain") == 1
    assert value_of(client, "rates.rate()", "fresh") == 23
    module.write_text("def rate(): return 456")

    def current() -> int:
        return rates.rate()  # type: ignore[name-defined] # noqa: F821

    assert (plain.call(current), fresh.call(current)) == (1, 456)


@over_http
def test_reload_turns_on_only_once(client: Client) -> None:
    for _ in range(2):
        session = client.session("train", reload=True)
    assert session.info.tasks == 2


@over_http
def test_again_runs_in_the_same_session(client: Client) -> None:
    client.session("train").run_code("x = 0")
    task = client.session("train").submit_code("x += 1")
    assert task.wait(60).status == "completed"
    client.again(task.id).result()
    assert value_of(client, "x") == 2


async def test_async_client_uses_sessions(client: Client) -> None:
    inside = client.aio.with_options(session="train")
    pid = await inside.call(os.getpid)
    assert await inside.call(os.getpid) == pid
    assert [each.name for each in await inside.sessions()] == ["train"]
    running = await inside.submit_call(nap, 600)
    with pytest.raises(asyncio.TimeoutError):
        await running.result(0.5)
    assert (await inside.restart_session("train")).tasks == 0
    with pytest.raises(WorkerDied, match="its session was restarted"):
        await running
    assert await inside.call(os.getpid) != pid
    assert (await inside.free_session("train")).name == "train"
    assert await inside.sessions() == []
