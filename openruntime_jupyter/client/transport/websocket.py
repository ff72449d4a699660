"""Events of a remote runtime over WebSocket. Reconnects after a lost connection, without a gap if possible."""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from openruntime_jupyter.client.transport.watch import CONNECTED, DISCONNECTED, Events
from openruntime_jupyter.imports import load

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds between connection attempts: initial and maximum backoff."""

LARGEST_MESSAGE = 64 << 20
"""Bytes. Rich outputs may take several megabytes."""


class SocketEvents(Events):
    """Events of the runtime at `url`. `token` returns the current token; `local` bypasses proxies and accepts any certificate."""

    def __init__(self, url: str, token: Callable[[], str | None], local: bool) -> None:
        super().__init__()
        self._url = "ws" + url.removeprefix("http") + "/ws"
        self._token = token
        self._local = local
        self._socket: ClientConnection | None = None
        self._subscribed: frozenset[str] = frozenset()
        self._last: int | None = None
        self._left = threading.Event()

    def after_fork(self) -> None:
        """Reset the state in a forked child; see `Forkable`."""
        super().after_fork()
        self._socket, self._subscribed, self._last, self._left = None, frozenset(), None, threading.Event()

    def _listen(self) -> None:
        load("websockets.sync.client")
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        pause = FIRST_PAUSE
        while self.anybody():
            self._left.clear()
            try:
                topics = self.wanted()
                with connect(self._address(topics), **self._options()) as socket:
                    self._connected(socket, topics)
                    for text in socket:
                        pause = FIRST_PAUSE  # the server has not refused the token
                        self._received(json.loads(text))
                problem: Exception | None = None
            except (OSError, WebSocketException, ValueError) as failed:
                problem = failed
            with self._lock:
                self._socket = None
            if not self.anybody():
                return
            self.dispatch({"type": DISCONNECTED, "error": str(problem or "the server closed the connection")})
            self._left.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _address(self, topics: frozenset[str]) -> str:
        query = {"topics": ",".join(sorted(topics))} | ({} if self._last is None else {"since": str(self._last)})
        return f"{self._url}?{urlencode(query)}"

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_size": LARGEST_MESSAGE, "close_timeout": 1.0}
        if token := self._token():
            options["additional_headers"] = {"Authorization": f"token {token}"}
        if self._local:
            options["proxy"] = None
            if self._url.startswith("wss:"):
                options["ssl"] = ssl._create_unverified_context()  # noqa: S323, SLF001 - certificates name a host, not the loopback address
        return options

    def _connected(self, socket: ClientConnection, topics: frozenset[str]) -> None:
        with self._lock:
            self._socket, self._subscribed = socket, topics | {"task_update"}  # which is sent without being asked for
            if self._watches:
                self._topics_changed()
                return
        socket.close()  # the last watcher left while connecting

    def _received(self, message: dict[str, Any]) -> None:
        if message.get("type") == CONNECTED:
            # Without `since` this is the first connection, and earlier events are unknown.
            message = {**message, "gap": message.get("gap", True)}
        self._last = message.get("id", self._last)
        self.dispatch(message)

    def _topics_changed(self) -> None:
        socket, wanted = self._socket, self.wanted()
        if socket is None:
            return
        for kind, topics in (("subscribe", wanted - self._subscribed), ("unsubscribe", self._subscribed - wanted)):
            if topics:
                self._send(socket, {"type": kind, "topics": sorted(topics)})
        self._subscribed = wanted

    def _send(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        from websockets.exceptions import WebSocketException

        try:
            socket.send(json.dumps(message))
        except (OSError, WebSocketException) as problem:  # the next connection subscribes again
            log.debug("Could not change the topics: %s", problem)

    def _leave(self) -> None:
        self._left.set()
        with self._lock:
            socket = self._socket
        if socket is not None:
            socket.close()
