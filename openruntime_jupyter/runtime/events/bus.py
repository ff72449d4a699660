"""The event bus: what happens to tasks, told once to everyone who asked.

Each event is encoded once for all its readers. Updates of one task are coalesced for up to 50 ms, terminal ones never. The
last events are kept, so that a reader who comes back misses nothing or is told that it did.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from pydantic_core import to_json

COALESCE_SECONDS = 0.05
AT_ONCE = 200
"""Updates that are told in one turn of the loop: about a millisecond."""
REPLAY_EVENTS = 10_000
QUEUE_EVENTS = 1_000
"""Events that a reader may be behind before it is cut off."""
QUEUE_BYTES = 16_000_000
"""Bytes of output, as JSON, that a reader may be behind: one picture can be as large as a thousand states."""

Data = dict[str, Any]


class Told(Protocol):
    """What a message says, before it is put into words."""

    def data(self) -> Data:
        """The message's `data`."""


Describe = Callable[[], "Data | Told | None"]

TOPICS = ("task_update", "metrics", "task_progress", "task_output", "ai_token")


@dataclass(slots=True)
class Event:
    """One message, as its `body`, or as what makes its `data`: most are kept for nobody, so their words are made for who reads first."""

    id: int
    topic: str
    told: Data | Told
    _encoded: str | None = field(default=None, repr=False)

    @property
    def body(self) -> Data:
        """What goes over the wire, without the `id`."""
        if not isinstance(self.told, dict):
            self.told = {"type": self.topic, "data": self.told.data()}
        return self.told

    @property
    def size(self) -> int:
        """Characters of JSON that keeping the message costs; of the small kinds, which are not encoded for it, nothing."""
        return len(self.encoded) if self.topic == "task_output" else 0

    @property
    def encoded(self) -> str:
        """The message as JSON text, made at first use and shared by all readers."""
        if self._encoded is None:
            self._encoded = to_json({**self.body, "id": self.id}, inf_nan_mode="null").decode()
        return self._encoded


class Subscription:
    """One reader's queue. Iterate it; it ends when it is closed, or when it `overflowed`.

    A reader that does not read has its metrics coalesced to the newest, and past the bound it is cut off: nobody waits for it
    and it costs a bounded amount of memory. One that is in no hurry is woken at most every `gather` seconds, for all that came meanwhile.
    """

    def __init__(self, bus: EventBus, topics: Iterable[str], bound: int = QUEUE_EVENTS, gather: float = 0.0) -> None:
        self.topics = set(topics)
        self.overflowed = False
        self.closed = False
        self._bus = bus
        self._bound = bound
        self._gather = gather
        self._queue: deque[Event] = deque()
        self._bytes = 0
        self._metrics: Event | None = None
        self._ready = asyncio.Event()

    def push(self, event: Event) -> None:
        """Queue `event`, or cut this reader off."""
        if event.topic == "metrics":
            self._metrics = event
        elif len(self._queue) >= self._bound or self._bytes > QUEUE_BYTES:
            self.overflowed = True
            self._queue.clear()
            self.close()
        else:
            self._queue.append(event)
            self._bytes += event.size
        self._ready.set()

    def change(self, topics: Iterable[str]) -> None:
        """Listen to these topics from now on, and to no others."""
        self.topics = set(topics)
        self._bus.changed()

    def close(self) -> None:
        """End the iteration and leave the bus; what is queued is still delivered unless it overflowed."""
        self.closed = True
        self._bus.forget(self)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._queue or self._metrics is not None:
                # In the order of their ids: a reader that comes back asks for what is after the last one it got.
                if self._metrics is not None and not (self._queue and self._queue[0].id < self._metrics.id):
                    event, self._metrics = self._metrics, None
                    yield event
                else:
                    event = self._queue.popleft()
                    self._bytes -= event.size
                    yield event
            if self.closed:
                return
            self._ready.clear()
            if not self._queue and self._metrics is None:
                await self._ready.wait()
                if self._gather and not self.closed:
                    await asyncio.sleep(self._gather)


class EventBus:
    """Publishes to subscriptions on one loop; `watched` says whether anybody listens to a topic."""

    def __init__(self) -> None:
        # Microseconds of the clock: ids rise across restarts, and stay below 2**53 for JavaScript.
        self._last = int(time.time() * 1e6)
        self._first_kept = self._last + 1
        self._kept: deque[Event] = deque()
        self._subscriptions: set[Subscription] = set()
        self._held: dict[str, Describe] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.on_watch: Callable[[], None] | None = None

    def publish(self, topic: str, told: Data | Told, *, replay: bool = False) -> None:
        """Give every subscriber of `topic` this message, told as an `Event` is; with `replay`, keep it for those who come back."""
        self._last += 1
        event = Event(self._last, topic, told)
        if replay:
            self._kept.append(event)
            if len(self._kept) > REPLAY_EVENTS:
                self._first_kept = self._kept.popleft().id + 1
        for subscription in tuple(self._subscriptions):
            if topic in subscription.topics:
                subscription.push(event)

    def task_update(self, task_id: str, describe: Describe, terminal: bool) -> None:
        """Tell of a task's new state; `describe()` gives the message's `data` when it is sent, or None if that is not so any more."""
        if terminal:
            self._held.pop(task_id, None)
            self._tell(describe)
            return
        self._held[task_id] = describe
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._release)

    def _release(self) -> None:
        self._timer = None
        for task_id in tuple(islice(self._held, AT_ONCE)):
            self._tell(self._held.pop(task_id))
        if self._held:
            self._timer = asyncio.get_running_loop().call_later(0, self._release)

    def _tell(self, describe: Describe) -> None:
        data = describe()
        if data is not None:
            self.publish("task_update", {"type": "task_update", "data": data} if isinstance(data, dict) else data, replay=True)

    def subscribe(
        self, topics: Iterable[str] = ("task_update",), since: int | None = None, bound: int = QUEUE_EVENTS, gather: float = 0.0
    ) -> tuple[Subscription, bool]:
        """A new reader, and whether events after `since` are lost to it; the kept ones are queued for it already."""
        subscription = Subscription(self, topics, bound + REPLAY_EVENTS if since is not None else bound, gather)
        gap = False
        if since is not None:
            gap = since < self._first_kept - 1 or since > self._last
            for event in self._kept:
                if event.id > since and event.topic in subscription.topics:
                    subscription.push(event)
        self._subscriptions.add(subscription)
        self.changed()
        return subscription, gap

    def forget(self, subscription: Subscription) -> None:
        """Stop telling this reader."""
        self._subscriptions.discard(subscription)
        self.changed()

    def changed(self) -> None:
        """Who listens to what has changed."""
        if self.on_watch is not None:
            self.on_watch()

    def watched(self, topic: str) -> bool:
        """Whether anybody listens to `topic`, so that what costs effort is not made for nobody."""
        return any(topic in subscription.topics for subscription in self._subscriptions)

    @property
    def last_id(self) -> int:
        """The id of the newest event."""
        return self._last

    def close(self) -> None:
        """End every subscription."""
        while self._timer is not None:
            self._timer.cancel()
            self._release()
        for subscription in tuple(self._subscriptions):
            subscription.close()
