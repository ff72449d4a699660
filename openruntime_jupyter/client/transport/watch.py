"""What happens, as it happens: one thread, and one connection, for all who watch a runtime from this process."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.client.transport.forks import reset_in_child

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

TOPICS = frozenset({"task_update", "task_progress", "task_output", "metrics", "ai_token"})
"""What can be watched, in the words of the API."""

CONNECTED, DISCONNECTED = "connected", "disconnected"
"""Types of the messages that everybody gets: from here on nothing is missed, unless the message says `gap`; from here on all is."""

Tell = Callable[[dict[str, Any]], None]


class Watch:
    """Somebody who watches. `tell(message)` must be quick, and must not change the message.

    It is called on the thread of the events, for a first `connected` on the one where the watch begins.
    """

    def __init__(self, events: Events, topics: frozenset[str], tell: Tell) -> None:
        self.topics = topics
        self.tell = tell
        self._events = events

    def close(self) -> None:
        """Watch no more. The last one to go ends the thread and the connection."""
        self._events.drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Events(ABC):
    """Gives each message to those who watch its topic. The thread begins with the first of them, and ends with the last.

    A kind of runtime adds `_listen`, which passes on all that comes until `_leave` or the end, and `_topics_changed`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watches: list[Watch] = []
        self._thread: threading.Thread | None = None
        self._live = False
        reset_in_child(self)

    def after_fork(self) -> None:
        """See `Forkable`. The watches are the parent's; the child may begin others."""
        self._lock = threading.RLock()
        self._watches = []
        self._thread = None
        self._live = False

    def watch(self, topics: Iterable[str], tell: Tell) -> Watch:
        """Begin to watch; raises ValueError for a topic that there is not."""
        wanted = frozenset(topics)
        if unknown := wanted - TOPICS:
            raise ValueError(f"there is no topic {', '.join(sorted(unknown))}; there are {', '.join(sorted(TOPICS))}")
        watch = Watch(self, wanted, tell)
        with self._lock:
            self._watches.append(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="openruntime-events", daemon=True)
                self._thread.start()
            else:
                self._topics_changed()
            live = self._live
        if live:
            tell({"type": CONNECTED, "gap": True})
        return watch

    def drop(self, watch: Watch) -> None:
        """End a watch; one that ended before is left as it is."""
        with self._lock:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
            if self._watches:
                self._topics_changed()
                return
        self._leave()

    def wanted(self) -> frozenset[str]:
        """The topics that anybody watches."""
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

    def tell(self, message: dict[str, Any]) -> None:
        """Give a message to those whom it concerns."""
        kind = message.get("type")
        with self._lock:
            self._live = kind != DISCONNECTED and (self._live or kind == CONNECTED)
            concerned = [watch for watch in self._watches if kind in watch.topics or kind in (CONNECTED, DISCONNECTED)]
        for watch in concerned:
            try:
                watch.tell(message)
            except Exception:  # one that fails must not keep the others from hearing
                log.exception("Somebody who watches failed on a message of the type %s", kind)

    def tells_here(self) -> bool:
        """Whether the calling thread is the one on which those who watch are told."""
        return threading.current_thread() is self._thread

    def anybody(self) -> bool:
        """Whether there is anybody who watches."""
        with self._lock:
            return bool(self._watches)

    @abstractmethod
    def _listen(self) -> None:
        """Connect, and pass on what comes, until nobody watches or the connection is lost for good."""

    @abstractmethod
    def _topics_changed(self) -> None:
        """Others are wanted now; called with the lock held."""

    @abstractmethod
    def _leave(self) -> None:
        """Make `_listen` return soon: nobody watches."""
