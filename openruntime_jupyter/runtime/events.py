"""Event bus that publishes task events to subscribers.

Each event is encoded once for all subscribers. The last events are kept for replay, so that a reconnecting subscriber misses none or
learns that it did.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

REPLAY_EVENTS = 10_000
QUEUE_EVENTS = 1_000
"""Maximum number of queued events of a subscriber before it is disconnected."""
QUEUE_BYTES = 16_000_000
"""Maximum bytes of queued output (JSON) of a subscriber: one image can be as large as a thousand task updates."""

Data = dict[str, Any]


@dataclass(slots=True)
class Event:
    """One message; `body` is the message as sent, without the `id`."""

    id: int
    topic: str
    body: Data
    _encoded: str | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Characters of the message's JSON if it has output; 0 for the small other topics, which are not encoded for this."""
        return len(self.encoded) if self.topic == "task_output" else 0

    @property
    def encoded(self) -> str:
        """Message as JSON text, encoded at first use and shared by all subscribers."""
        if self._encoded is None:
            self._encoded = to_json({**self.body, "id": self.id}, inf_nan_mode="null").decode()
        return self._encoded


class Subscription:
    """Event queue of one subscriber. Iterate over it; the iteration ends when it is closed or has `overflowed`.

    For a slow subscriber, metrics are coalesced to the newest, and it is disconnected when its queue exceeds `bound`. It therefore
    blocks no publisher and uses bounded memory. With `gather`, events are delivered together, at most once per `gather` seconds.
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
        """Queue `event`, or close this subscription if its queue is full."""
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
        """Replace the subscribed topics."""
        self.topics = set(topics)
        self._bus.changed()

    def close(self) -> None:
        """Unsubscribe and end the iteration; queued events are still delivered unless the queue overflowed."""
        self.closed = True
        self._bus.forget(self)
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._queue or self._metrics is not None:
                # In the order of ids, because a reconnecting subscriber requests the events after its last one.
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
    """Event bus on one loop; `watched` returns whether a topic has subscribers."""

    def __init__(self) -> None:
        # Microseconds since the epoch, so that ids increase across restarts and stay below 2**53 for JavaScript.
        self._last = int(time.time() * 1e6)
        self._first_kept = self._last + 1
        self._kept: deque[Event] = deque()
        self._subscriptions: set[Subscription] = set()
        self.on_watch: Callable[[], None] | None = None

    def publish(self, topic: str, body: Data, *, replay: bool = False) -> None:
        """Send a message to every subscriber of `topic`; with `replay`, keep it for reconnecting subscribers."""
        self._last += 1
        event = Event(self._last, topic, body)
        if replay:
            self._kept.append(event)
            if len(self._kept) > REPLAY_EVENTS:
                self._first_kept = self._kept.popleft().id + 1
        for subscription in tuple(self._subscriptions):
            if topic in subscription.topics:
                subscription.push(event)

    def subscribe(
        self, topics: Iterable[str] = ("task_update",), since: int | None = None, bound: int = QUEUE_EVENTS, gather: float = 0.0
    ) -> tuple[Subscription, bool]:
        """Return a new subscription and whether events after `since` are lost; kept events after `since` are queued in it."""
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
        """Remove a subscription."""
        self._subscriptions.discard(subscription)
        self.changed()

    def changed(self) -> None:
        """Call `on_watch` after a change of the subscribed topics."""
        if self.on_watch is not None:
            self.on_watch()

    def watched(self, topic: str) -> bool:
        """Return whether `topic` has subscribers, so that expensive events are built only if needed."""
        return any(topic in subscription.topics for subscription in self._subscriptions)

    @property
    def last_id(self) -> int:
        """Id of the newest event."""
        return self._last

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
