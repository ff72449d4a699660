"""Event subscriptions from another thread, also before the runtime's loop has started them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from openruntime_jupyter.client.transport.embedded import Listening
from openruntime_jupyter.runtime.events import EventBus


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))


def test_topics_that_are_changed_at_once_are_those_that_are_heard(loop: asyncio.AbstractEventLoop) -> None:
    bus = EventBus()
    listening = Listening(loop, bus, frozenset({"task_update"}))
    listening.change(frozenset({"metrics"}))
    turn(loop)
    assert bus.watched("metrics")
    assert not bus.watched("task_update")
    listening.change(frozenset({"task_output"}))
    turn(loop)
    assert bus.watched("task_output")
    listening.end()
    turn(loop)


@pytest.mark.parametrize("begun", [True, False])
def test_its_end_is_told_and_leaves_nobody_subscribed(loop: asyncio.AbstractEventLoop, begun: bool) -> None:
    bus = EventBus()
    listening = Listening(loop, bus, frozenset({"metrics"}))
    if begun:
        turn(loop)
        assert listening.received.get(timeout=1) == {"type": "connected", "gap": True}
    listening.end()
    assert listening.received.get(timeout=1) is None
    turn(loop)
    assert not bus.watched("metrics")
    listening.change(frozenset({"metrics"}))
