from __future__ import annotations

import asyncio
import json

import pytest

from openruntime_jupyter.runtime.events import REPLAY_EVENTS, EventBus


async def test_gathering_subscriber_resumes_once_for_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    pause, over, asked = asyncio.sleep, asyncio.Event(), []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await over.wait()

    monkeypatch.setattr("openruntime_jupyter.runtime.events.asyncio.sleep", sleep)
    bus = EventBus()
    subscription, _ = bus.subscribe(gather=0.5)
    heard: list[int] = []

    async def read() -> None:
        async for event in subscription:
            heard.append(event.body["number"])  # noqa: PERF401 - each as it comes

    reading = asyncio.create_task(read())
    for number in range(3):
        await pause(0)
        await pause(0)
        bus.publish("task_update", {"number": number})
    assert (heard, asked) == ([], [0.5])
    over.set()
    subscription.close()
    await reading
    assert (heard, asked) == ([0, 1, 2], [0.5])


async def test_ids_increase_and_are_safe_integers_in_javascript() -> None:
    bus = EventBus()
    subscription, _ = bus.subscribe()
    for _ in range(100):
        bus.publish("task_update", {"type": "task_update", "data": {}})
    subscription.close()
    ids = [json.loads(event.encoded)["id"] async for event in subscription]
    assert ids == sorted(set(ids))
    assert ids[-1] < 2**53
    assert EventBus().last_id > ids[0], "ids rise across restarts too"


async def test_since_replays_each_missed_event_once() -> None:
    bus = EventBus()
    first, _ = bus.subscribe()
    for number in range(5):
        bus.publish("task_update", {"number": number}, replay=True)
    first.close()
    seen = [event async for event in first]
    for number in range(5, 10):
        bus.publish("task_update", {"number": number}, replay=True)
    again, gap = bus.subscribe(since=seen[-1].id)
    bus.publish("task_update", {"number": 10}, replay=True)
    again.close()
    assert not gap
    assert [event.body["number"] for event in seen] + [event.body["number"] async for event in again] == list(range(11))


async def test_gap_is_reported_for_lost_events() -> None:
    bus = EventBus()
    start = bus.last_id
    for number in range(REPLAY_EVENTS + 10):
        bus.publish("task_update", {"number": number}, replay=True)
    for since, expected in (
        (start, True),
        (start + 9, True),
        (start + 10, False),
        (bus.last_id, False),
        (bus.last_id + 1, True),
        (5, True),
    ):
        subscription, gap = bus.subscribe(since=since)
        subscription.close()
        assert gap is expected, f"since {since - start} of {bus.last_id - start}"


async def test_slow_subscriber_is_disconnected_alone() -> None:
    bus = EventBus()
    sleeper, _ = bus.subscribe(bound=10)
    reader, _ = bus.subscribe(bound=1000)
    for number in range(100):
        bus.publish("task_update", {"number": number})
    assert sleeper.overflowed
    assert [event async for event in sleeper] == []
    reader.close()
    assert len([event async for event in reader]) == 100
    assert not bus.watched("task_update")


async def test_metrics_are_coalesced_to_the_newest_for_a_slow_reader() -> None:
    bus = EventBus()
    subscription, _ = bus.subscribe(("metrics",), bound=2)
    for number in range(100):
        bus.publish("metrics", {"number": number})
    subscription.close()
    assert [event.body["number"] async for event in subscription] == [99]
    assert not subscription.overflowed


async def test_message_is_encoded_once_for_all_subscribers() -> None:
    bus = EventBus()
    subscriptions = [bus.subscribe()[0] for _ in range(3)]
    bus.publish("task_update", {"type": "task_update", "data": {"figure": float("nan")}})
    texts = []
    for subscription in subscriptions:
        subscription.close()
        texts += [event.encoded async for event in subscription]
    assert len({id(text) for text in texts}) == 1
    assert json.loads(texts[0])["data"] == {"figure": None}, "NaN is null"
