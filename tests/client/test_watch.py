"""Event subscriptions over HTTP and embedded, reconnects, and subscriptions before the loop of an embedded runtime has started them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend, Listening
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.watch import Watch
from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.runtime.settings import Settings
from tests.support import STANDALONE, free_port, running_server, wait_until

Messages = list[dict[str, Any]]


def heard(client: Client, *topics: str) -> tuple[Messages, Watch]:
    """Return a list that collects messages, once connected."""
    messages: Messages = []
    watch = client.watch(topics, messages.append)
    wait_until(lambda: kinds(messages), what="the connection")
    return messages, watch


def kinds(messages: Messages) -> list[str]:
    return [message["type"] for message in list(messages)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "openruntime-events"]


def told(messages: Messages, task_id: str, kind: str = "task_update") -> Callable[[], Messages]:
    return lambda: [message for message in list(messages) if message["type"] == kind and message["data"]["task_id"] == task_id]


def test_everybody_hears_of_the_topics_that_they_watch_and_of_no_others(client: Client) -> None:
    states, first = heard(client, "task_update")
    output, second = heard(client, "task_output", "task_progress")
    with first, second:
        handle = client.submit_code("import openruntime_jupyter as o\no.progress(1, 2)\nprint('hello')")
        wait_until(lambda: [m for m in told(states, handle.id)() if m["data"]["status"] == "completed"], what="the end")
        assert wait_until(told(output, handle.id, "task_output"))[0]["data"]["items"][0]["text"] == "hello\n"
        assert wait_until(told(output, handle.id, "task_progress"))[0]["data"]["n"] == 1
        assert set(kinds(states)) == {"connected", "task_update"}
        assert set(kinds(output)) == {"connected", "task_output", "task_progress"}


def test_there_is_one_thread_however_many_watch_and_none_when_they_have_gone(client: Client) -> None:
    wait_until(lambda: not threads(), what="the end of the thread before")
    watches = [heard(client, "task_update")[1]]
    watches += [client.watch(["metrics"], lambda message: None) for _ in range(5)]
    assert len(threads()) == 1
    for watch in watches:
        watch.close()
        watch.close()
    wait_until(lambda: not threads(), what="the end of the thread")
    again, last = heard(client, "metrics")
    with last:
        wait_until(lambda: "metrics" in kinds(again), what="figures")


def test_one_who_fails_keeps_no_other_from_hearing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def fail(message: dict[str, Any]) -> None:
        raise ValueError("not today")

    with client.watch(["task_update"], fail):
        messages, watch = heard(client, "task_update")
        with watch:
            handle = client.submit("call")
            wait_until(told(messages, handle.id), what="the task")
    assert "not today" in caplog.text


def test_a_topic_that_there_is_not_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"topics: weather. Available topics: ai_token, metrics"):
        client.watch(["weather"], lambda message: None)


def test_the_connection_comes_back_after_the_server_did_and_says_that_something_may_be_missed(tmp_path: Path) -> None:
    port = free_port()
    with running_server(tmp_path, STANDALONE, port=port) as first:
        client = Client(HttpBackend(first.url, first.token))
        messages, watch = heard(client, "task_update")
        assert messages[0]["gap"] is True, "what happened before is not known"
    with watch:
        wait_until(lambda: "disconnected" in kinds(messages), what="the loss")
        with running_server(tmp_path, STANDALONE, port=port) as second:
            wait_until(lambda: kinds(messages)[-1] == "connected", 30, "the connection")
            assert messages[-1]["gap"] is True
            with Client(HttpBackend(second.url, second.token)) as other:
                handle = other.submit("matrix_multiply", size=8)
            wait_until(told(messages, handle.id), what="the task")
    client.close()


def test_the_embedded_runtime_is_heard_again_when_it_was_started_again(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True, cpu_slots=1))
    client = Client(backend)
    try:
        messages, watch = heard(client, "task_update")
        with watch:
            backend.stop()
            wait_until(lambda: "disconnected" in kinds(messages), what="the loss")
            handle = client.submit("call")
            wait_until(lambda: kinds(messages).count("connected") == 2, what="the connection")
            assert handle.wait(30).status == "completed"
    finally:
        backend.stop()


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_topics_that_are_changed_at_once_are_those_that_are_heard() -> None:
    bus = EventBus()
    listening = Listening(asyncio.get_running_loop(), bus, frozenset({"task_update"}))
    listening.change(frozenset({"metrics"}))
    await turn()
    assert bus.watched("metrics")
    assert not bus.watched("task_update")
    listening.change(frozenset({"task_output"}))
    await turn()
    assert bus.watched("task_output")
    listening.end()
    await turn()


@pytest.mark.parametrize("begun", [True, False])
async def test_its_end_is_told_and_leaves_nobody_subscribed(begun: bool) -> None:
    bus = EventBus()
    listening = Listening(asyncio.get_running_loop(), bus, frozenset({"metrics"}))
    if begun:
        await turn()
        assert listening.received.get(timeout=1) == {"type": "connected", "gap": True}
    listening.end()
    assert listening.received.get(timeout=1) is None
    await turn()
    assert not bus.watched("metrics")
    listening.change(frozenset({"metrics"}))
