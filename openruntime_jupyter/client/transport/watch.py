"""Event subscriptions. All watchers of a runtime in this process share one thread and one connection."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, get_args

from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.schemas.events import Topic

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

TOPICS: frozenset[str] = frozenset(get_args(Topic))
"""Topics of the API's WebSocket."""

CONNECTED, DISCONNECTED = "connected", "disconnected"
"""Message types that all watchers get. After `connected` no events are missed (`gap`: some were before it); after `disconnected`, all."""

OnMessage = Callable[[dict[str, Any]], None]


class Watch:
    """Subscription of a watcher. `on_message(message)` must return quickly and must not modify the message.

    It is called on the event thread. An initial `connected` may be sent on the thread that starts the watch.
    """

    def __init__(self, events: Events, topics: frozenset[str], on_message: OnMessage) -> None:
        self.topics = topics
        self.on_message = on_message
        self._events = events

    def close(self) -> None:
        """Unsubscribe. Closing the last watch stops the thread and the connection."""
        self._events.drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Events(ABC):
    """Dispatcher of messages to the watchers of their topics. Its thread runs while there are watchers.

    Subclasses implement `_listen`, which passes on messages until `_leave` or the end of the connection, and `_topics_changed`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watches: list[Watch] = []
        self._thread: threading.Thread | None = None
        self._live = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """Reset the state in a forked child. Watches stay with the parent; the child can start new ones."""
        self._lock = threading.RLock()
        self._watches = []
        self._thread = None
        self._live = False

    def watch(self, topics: Iterable[str], on_message: OnMessage) -> Watch:
        """Start a watch. Raises ValueError for an unknown topic."""
        wanted = frozenset(topics)
        if unknown := wanted - TOPICS:
            raise ValueError(f"Unknown topics: {', '.join(sorted(unknown))}. Available topics: {', '.join(sorted(TOPICS))}")
        watch = Watch(self, wanted, on_message)
        with self._lock:
            self._watches.append(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="openruntime-events", daemon=True)
                self._thread.start()
            else:
                self._topics_changed()
            live = self._live
        if live:
            on_message({"type": CONNECTED, "gap": True})
        return watch

    def drop(self, watch: Watch) -> None:
        """Remove a watch. Does nothing if it was removed before."""
        with self._lock:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
            if self._watches:
                self._topics_changed()
                return
        self._leave()

    def wanted(self) -> frozenset[str]:
        """Return the topics with watchers."""
        with self._lock:
            return frozenset().union(*(watch.topics for watch in self._watches))

    def _run(self) -> None:
        while True:
            self._listen()
            with self._lock:
                self._live = False
                if not self._watches:
                    self._thread = None
                    return

    def dispatch(self, message: dict[str, Any]) -> None:
        """Dispatch a message to the watchers of its topic."""
        kind = message.get("type")
        with self._lock:
            self._live = kind != DISCONNECTED and (self._live or kind == CONNECTED)
            concerned = [watch for watch in self._watches if kind in watch.topics or kind in (CONNECTED, DISCONNECTED)]
        for watch in concerned:
            try:
                watch.on_message(message)
            except Exception:  # a failing watcher must not stop the others
                log.exception("A watcher failed on a message of type %s", kind)

    def on_event_thread(self) -> bool:
        """Return whether the calling thread is the event thread."""
        return threading.current_thread() is self._thread

    def anybody(self) -> bool:
        """Return whether there are watchers."""
        with self._lock:
            return bool(self._watches)

    @abstractmethod
    def _listen(self) -> None:
        """Connect and pass on messages until there are no watchers or the connection is lost permanently."""

    @abstractmethod
    def _topics_changed(self) -> None:
        """Update the subscribed topics. Called with the lock held."""

    @abstractmethod
    def _leave(self) -> None:
        """Make `_listen` return soon, because there are no watchers."""
