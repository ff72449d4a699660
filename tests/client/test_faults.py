"""The client behind a network that loses, cuts and rejects its requests."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import numpy as np
import pytest

from openruntime_jupyter.client.array_data import download
from openruntime_jupyter.client.base import Options
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport import retry
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.errors import NotConnected, RateLimited, Unavailable
from sdks.conformance.proxy import Fault, Proxy
from tests.ai.provider_server import Connection, Request, providing
from tests.server.ai_support import KEY, profile
from tests.support import Server, running_server


@contextmanager
def faults(target: str, *planned: Fault, port: int = 0) -> Iterator[Proxy]:
    """Run a proxy of `target` during the block, by default on a free port. At its end all planned faults must have been met."""
    proxy = Proxy(target, list(planned), port)
    try:
        yield proxy
    finally:
        proxy.close()
    assert not [fault for fault in proxy.faults if fault.missed], "faults that no request met"


def rejects(status: int, retry_after: float | None = None, times: int = 1, text: str | None = None) -> Fault:
    """Return the fault of submissions that are rejected without the server."""
    return Fault("POST", "/tasks", times, {"status": status, "retry_after": retry_after, "text": text})


@contextmanager
def client_behind(server: Server, *planned: Fault) -> Iterator[Client]:
    """Return a client whose requests pass a proxy with faults. The name of its tasks is unique."""
    options = Options(name=f"faults {uuid4().hex}")
    with faults(server.url, *planned) as proxy, Client(HttpBackend(proxy.url, server.token), options) as client:
        yield client


def submitted(server: Server, client: Client) -> list[str]:
    """Return the states of the client's tasks."""
    return [task["status"] for task in server.get("/tasks", params={"name": client.options.name})["tasks"]]


@pytest.mark.parametrize(("status", "text"), [(503, None), (429, None), (502, "<html>a planned error</html>")])
def test_temporary_rejection_is_waited_out(server: Server, status: int, text: str | None) -> None:
    retry_after = 1 if status != 502 else None
    with client_behind(server, rejects(status, retry_after, text=text)) as client:
        begun = time.monotonic()
        assert client.run("compute", expression="1 + 1")["value"] == 2
        assert time.monotonic() - begun >= (retry_after or 0.3)
        assert submitted(server, client) == ["completed"]


@pytest.mark.parametrize(("status", "retry_after", "kind"), [(429, 3600, RateLimited), (503, None, Unavailable)])
def test_rejection_for_long_or_for_good_is_raised_at_once(
    server: Server, status: int, retry_after: float | None, kind: type[Exception]
) -> None:
    with client_behind(server, rejects(status, retry_after)) as client:
        with pytest.raises(kind, match="is planned") as caught:
            client.run("compute")
        assert caught.value.retry_after == retry_after  # type: ignore[attr-defined]
        assert not submitted(server, client)


def test_third_rejection_is_raised(server: Server) -> None:
    with client_behind(server, rejects(503, 0.1, times=3)) as client, pytest.raises(Unavailable):
        client.submit("compute")


def test_lost_responses_make_no_second_task(server: Server) -> None:
    with client_behind(server, Fault("POST", "/tasks", times=2, lose=True)) as client:
        assert client.run("compute", expression="2 + 2")["value"] == 4
        assert submitted(server, client) == ["completed"]


def test_server_that_restarts_is_reached_again(server: Server) -> None:
    with ExitStack() as stack:
        with faults(server.url) as before:
            client = stack.enter_context(Client(HttpBackend(before.url, server.token)))
            assert client.devices()
        with pytest.raises(NotConnected):
            client.devices()
        timer = threading.Timer(0.2, lambda: stack.enter_context(faults(server.url, port=before.port)))
        timer.start()
        assert client.devices()
        timer.join()


def test_wait_outlasts_absence_of_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LONGEST_BACKOFF", 0.1)
    with client_behind(server, Fault("GET", "/tasks/[^/]+", times=6, lose=True)) as client:
        assert client.submit_code("import time; time.sleep(0.5); r = 1", outputs=("r",)).result(60) == {"r": 1}


def test_lost_upload_is_sent_again(server: Server) -> None:
    name = f"lost-{uuid4().hex}"
    with client_behind(server, Fault("PUT", f"/arrays/{name}", lose=True)) as client:
        client.arrays.put(name, np.arange(6.0))
        assert client.arrays.get(name).tolist() == [0, 1, 2, 3, 4, 5]


def test_broken_download_continues_where_it_was(server: Server) -> None:
    name, value = f"cut-{uuid4().hex}", np.arange(400_000)
    with client_behind(server, Fault("GET", f"/arrays/{name}", times=2, cut_after=1_500_000)) as client:
        client.arrays.put(name, value)
        assert np.asarray(download(client.backend, name)).tolist() == value.tolist()


def test_interrupt_ends_wait_before_retry(server: Server) -> None:
    with client_behind(server, rejects(503, 30, times=2)) as client:
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT))
        begun = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.run("compute")
        assert time.monotonic() - begun < 10
        assert not submitted(server, client)


def test_cancelled_coroutine_ends_wait_before_retry(server: Server) -> None:
    async def run(client: Client) -> None:
        running = asyncio.ensure_future(client.aio.run("compute"))
        await asyncio.sleep(0.5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with client_behind(server, rejects(503, 30)) as client:
        begun = time.monotonic()
        asyncio.run(run(client))
        assert time.monotonic() - begun < 10
        assert not submitted(server, client)


def test_deadline_ends_wait_before_retry(server: Server) -> None:
    with client_behind(server, rejects(503, 30, times=2)) as client:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="no result within 1 s"):
            client.with_options(deadline=1.0).run("compute")
        assert time.monotonic() - begun < 10


def word_by_word(connection: Connection, request: Request) -> None:
    """Repeat the last message in many chunks."""
    connection.begin()
    for word in re.findall(r"\S+\s*", request.json["messages"][-1]["content"]):
        connection.text(word, finish=None)
        time.sleep(0.02)
    connection.text("")
    connection.event("[DONE]")


@pytest.fixture(scope="module")
def ai_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with a provider that echoes prompts."""
    folder = tmp_path_factory.mktemp("ai")
    with (
        providing(word_by_word) as provider,
        running_server(folder, config=profile(provider.url), environment={"THE_KEY": KEY}) as running,
    ):
        yield running


def test_broken_token_stream_continues_where_it_was(ai_server: Server) -> None:
    prompt = " ".join(f"héllo 👋 {number}" for number in range(30))
    with client_behind(ai_server, Fault("GET", "/tasks/[^/]+/tokens", times=2, cut_after=1500)) as client:
        handle = client.ask(prompt)
        assert "".join(handle) == prompt == str(handle.result(30))


def test_token_stream_ends_with_error_if_the_server_stays_away(ai_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 0.01)
    with client_behind(ai_server, Fault("GET", "/tasks/[^/]+/tokens", times=3, lose=True)) as client, pytest.raises(NotConnected):
        list(client.ask("hello"))


def test_events_continue_after_lost_connection(server: Server) -> None:
    ended: set[str] = set()
    gaps: list[bool] = []
    connected = threading.Semaphore(0)
    arrived = threading.Condition()

    def on_message(message: dict[str, object]) -> None:
        if message["type"] == "connected":
            gaps.append(bool(message.get("gap")))
            connected.release()
        data = message.get("data")
        if isinstance(data, dict) and data.get("status") == "completed":
            with arrived:
                ended.add(str(data["task_id"]))
                arrived.notify_all()

    with client_behind(server, Fault("GET", "/ws", cut_after=900)) as client, client.watch(["task_update"], on_message):
        assert connected.acquire(timeout=20)
        ids = set()
        for _ in range(4):
            handle = client.submit("compute")
            handle.result(60)
            ids.add(handle.id)
        with arrived:
            assert arrived.wait_for(lambda: ids <= ended, 30)
        assert connected.acquire(timeout=20)
    assert gaps == [True, False], "the second connection missed nothing"


def test_proxy_detects_faults_that_no_request_met(server: Server) -> None:
    with pytest.raises(AssertionError, match="no request met"), faults(server.url, Fault("GET", "/never")):
        pass
