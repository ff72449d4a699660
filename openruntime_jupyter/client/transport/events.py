"""Events of the embedded runtime, from its event bus."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from openruntime_jupyter.client.transport.watch import CONNECTED, DISCONNECTED, Events
from openruntime_jupyter.runtime.events import EventBus, Subscription

ABSENT_POLL = 0.5
"""Seconds between polls for a stopped runtime."""

Message = dict[str, Any]


class Listening:
    """Subscription on the runtime's loop. Any thread can read messages from `received`; None marks the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: EventBus, topics: frozenset[str]) -> None:
        self.received: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._loop = loop
        self._topics = topics
        self._subscription: Subscription | None = None
        self._listens = asyncio.run_coroutine_threadsafe(self._listen(bus), loop)
        self._listens.add_done_callback(lambda _: self.received.put(None))

    async def _listen(self, bus: EventBus) -> None:
        self._subscription, _ = bus.subscribe(self._topics)
        self.received.put({"type": CONNECTED, "gap": True})
        try:
            async for event in self._subscription:
                self.received.put({**event.body, "id": event.id})
        finally:
            self._subscription.close()

    def change(self, topics: frozenset[str]) -> None:
        """Change the subscribed topics."""
        self._topics = topics

        def on_the_loop() -> None:
            if self._subscription is not None:
                self._subscription.change(self._topics)

        if not self._listens.done():
            self._loop.call_soon_threadsafe(on_the_loop)

    def end(self) -> None:
        """Unsubscribe."""
        self._listens.cancel()


class BusEvents(Events):
    """Events of an embedded runtime. `listen(topics)` subscribes to the current runtime and returns None without one."""

    def __init__(self, listen: Callable[[frozenset[str]], Listening | None]) -> None:
        super().__init__()
        self._begin = listen
        self._listening: Listening | None = None
        self._wake = threading.Event()

    def after_fork(self) -> None:
        """Reset the state in a forked child; see `Forkable`."""
        super().after_fork()
        self._listening, self._wake = None, threading.Event()

    def _listen(self) -> None:
        topics = self.wanted()
        listening = self._begin(topics)
        if listening is None:
            self._wake.wait(ABSENT_POLL)
            self._wake.clear()
            return
        with self._lock:
            self._listening = listening
            if self.wanted() != topics:
                self._topics_changed()
            if not self._watches:
                listening.end()
        while (message := listening.received.get()) is not None:
            self.dispatch(message)
        with self._lock:
            self._listening = None
        if self.anybody():
            self.dispatch({"type": DISCONNECTED, "error": "The runtime of this process was stopped"})
            self._wake.wait(ABSENT_POLL)

    def _topics_changed(self) -> None:
        if self._listening is not None:
            self._listening.change(self.wanted())

    def _leave(self) -> None:
        self._wake.set()
        with self._lock:
            listening = self._listening
        if listening is not None:
            listening.end()
