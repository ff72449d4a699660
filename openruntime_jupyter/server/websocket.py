"""`WS /ws`: what happens, as it happens. This file only adapts the event bus to tornado."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal

from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.websocket import WebSocketMixin
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado import web, websocket

from openruntime_jupyter.errors import MalformedRequest, NotAllowed, RateLimited
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.runtime.events.bus import Event, Subscription
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.server.http.base import OTHER_PAGE, BaseHandler
from openruntime_jupyter.server.http.requests import SinceQuery
from openruntime_jupyter.server.openapi.decorator import Answer, described

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

HEARTBEAT_SECONDS = 5.0
STUCK_SECONDS = 30.0
"""How long one message may wait for the client to read before the connection is given up."""
PING_SECONDS = 30.0
LONGEST_MESSAGE = 65_536
"""Bytes that a client may send at once."""

VERSION = "13"
"""Of the protocol: that of RFC 6455, the only one that there is."""
GOING_AWAY = 1001
TRY_AGAIN_LATER = 1013
TOO_MANY_REQUESTS = 4029
TOO_SLOW = "You read too slowly: connect again with ?since=ID of the last message you got"

Topic = Literal["task_update", "metrics", "task_progress", "task_output", "ai_token"]


class ClientMessage(BaseModel):
    """What a client may say."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    type: Literal["subscribe", "unsubscribe"]
    topics: list[Topic] = Field(min_length=1, max_length=20)


SERVER_MESSAGES = {
    "connected": "First: `timestamp`, `message`; `gap` where `since` was given: whether something was missed.",
    "heartbeat": "Every 5 seconds: `timestamp`, `metrics`.",
    "task_update": "A task changed: `data` with `task_id`, `status`, `execution_time` and more.",
    "task_progress": "A topic. A task told how far it is: `data` with `task_id`, `n`, `total`, `message`, `remaining`.",
    "task_output": "A topic. A task printed or displayed: `data` with `task_id`, `items`, `next`.",
    "ai_token": "A topic. A model wrote a piece of text: `data` with `task_id`, `text`, and `index`, the characters before it.",
    "metrics": "A topic. Once a second: `timestamp`, `metrics`.",
    "subscribed": "After a subscription changed: `topics`.",
    "error": "A message was not understood, and the connection stays: `error`.",
}
"""What the server sends, by `type`."""


class EventsSocket(WebSocketMixin, websocket.WebSocketHandler, BaseHandler):
    """One client's connection.

    All that it is told goes through one bounded queue and one writer, which waits for the client to take each message. So a
    client that does not read costs a bounded amount of memory and delays nobody, and past the bound it is cut off.
    """

    is_websocket = True
    _runtime: Runtime
    _over_limit: RateLimited | None = None
    _since: int | None = None
    _subscription: Subscription | None = None
    _writer: asyncio.Task[None] | None = None
    _beating = False

    @property
    def max_message_size(self) -> int:
        """Bytes; a longer message ends the connection."""
        return LONGEST_MESSAGE

    @property
    def ping_interval(self) -> float:
        """Seconds between tornado's pings. Jupyter's mixin has milliseconds here, which tornado takes for seconds."""
        return PING_SECONDS

    @property
    def ping_timeout(self) -> float:
        """Seconds after which a client that answers no ping is gone."""
        return PING_SECONDS

    def set_default_headers(self) -> None:
        """None: a handshake has its own."""

    def admit(self) -> None:
        """See `BaseHandler`. Who is over a limit is told so by a close code: of a handshake that fails, browsers tell nothing."""
        try:
            super().admit()
        except RateLimited as problem:
            self._over_limit = problem

    def on_finish(self) -> None:
        """See `BaseHandler`. A handshake is the beginning."""
        if self.get_status() != 101:
            super().on_finish()

    @described(
        "Events",
        {101: Answer(description="From here on it is a WebSocket.")},
        query=SinceQuery,
        errors={426: "A WebSocket of another version than 13."},
        extra={"x-websocket": {"client": ClientMessage.model_json_schema(), "server": SERVER_MESSAGES}},
    )
    @ws_authenticated
    async def get(self) -> None:
        """Connect a WebSocket that tells what happens, as it happens.

        Each message is one JSON text with an `id` that never falls. `connected`, `heartbeat` and `task_update` come without asking;
        the topics `task_progress`, `task_output`, `ai_token` and `metrics` to who subscribes by
        `{"type": "subscribe", "topics": ["metrics"]}`, until `unsubscribe`. A client that reads too slowly is cut off with
        code 1013, and comes back with `since`; who has more
        connections than allowed, or asks too often, with 4029; when the server stops, the code is 1001.
        OpenAPI has no words for messages: `x-websocket` has them.
        """
        # Everything is checked while the answer can still be an HTTP error.
        if not await self.allowed("read"):
            raise NotAllowed("You may not read openruntime: ask whoever runs this server for that permission")
        if not self.check_origin():
            raise NotAllowed(OTHER_PAGE.format(self.get_origin()))
        problem = self._no_handshake()
        if problem is not None:
            raise self._over_limit or problem
        self._since = self.query(SinceQuery).since
        self._runtime = await self.runtime()
        await super().get()

    def _no_handshake(self) -> Exception | None:
        """What keeps the request from being a handshake, which tornado would answer in words of its own."""
        headers = self.request.headers
        wanted = [name.strip().lower() for name in headers.get("Connection", "").split(",")]
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in wanted:
            return MalformedRequest("This is a WebSocket: connect to it with ws:// or wss://, and through proxies that pass Upgrade on")
        if not headers.get("Sec-WebSocket-Key"):
            return MalformedRequest("The header Sec-WebSocket-Key is missing: connect as a WebSocket")
        return None if headers.get("Sec-WebSocket-Version") == VERSION else web.HTTPError(426)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """See `BaseHandler`. A client of another version is told ours."""
        if status_code == 426:
            self.set_header("Sec-WebSocket-Version", VERSION)
        super().write_error(status_code, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Greet, then tell what happens."""
        # Not through the mixin, which would start pings of its own beside tornado's.
        websocket.WebSocketHandler.open(self, *args, **kwargs)
        self.set_nodelay(True)
        if self._over_limit is not None:
            self.close(TOO_MANY_REQUESTS, str(self._over_limit))
            return
        bus = self._runtime.bus
        newest = bus.last_id
        self._subscription, gap = bus.subscribe(("task_update",), self._since)
        greeting: dict[str, Any] = {"type": "connected", "timestamp": iso(time.time()), "message": "Connected to OpenRuntime WebSocket"}
        if self._since is not None:
            greeting["gap"] = gap
        # Below every event that follows, also below those that are told again.
        first = Event(newest if self._since is None else min(self._since, newest), "connected", greeting)
        self._writer = self.app.in_background(self._write(first, self._subscription))

    async def _write(self, first: Event, subscription: Subscription) -> None:
        beat = asyncio.ensure_future(self._beat(subscription))
        try:
            taken = await self._send(first)
            async for event in subscription:
                if not taken:
                    break
                taken = await self._send(event)
            if not taken or subscription.overflowed:
                self.close(TRY_AGAIN_LATER, TOO_SLOW)
            else:
                self.close(GOING_AWAY, "The server is stopping")
        except websocket.WebSocketClosedError:
            pass  # the client has gone
        finally:
            beat.cancel()
            subscription.close()

    async def _send(self, event: Event) -> bool:
        """Whether the client took the message in time."""
        writing = asyncio.ensure_future(self.write_message(event.encoded))
        # Whatever becomes of a message that is given up, nobody asks any more.
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({writing}, timeout=STUCK_SECONDS)
        if not done:
            return False
        writing.result()
        if event.topic == "heartbeat":
            self._beating = False
        return True

    async def _beat(self, subscription: Subscription) -> None:
        """A heartbeat every five seconds; never two at once in the queue of a client that reads slowly."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._beating:
                self._beating = True
                metrics = self._runtime.metrics().model_dump()
                self._tell(subscription, "heartbeat", {"type": "heartbeat", "timestamp": iso(time.time()), "metrics": metrics})

    def _tell(self, subscription: Subscription, topic: str, body: dict[str, Any]) -> None:
        """Queue a message of our own, behind the events that came before it."""
        if not subscription.closed:
            subscription.push(Event(self._runtime.bus.last_id, topic, body))

    def on_message(self, message: str | bytes) -> None:
        """The client subscribes, or unsubscribes; anything else is answered by an error, and the connection stays."""
        subscription = self._subscription
        if subscription is None or subscription.closed:
            return
        try:
            said = ClientMessage.model_validate_json(message)
        except ValidationError as problem:
            self._tell(subscription, "answer", {"type": "error", "error": f"This message is not understood: {invalid(problem)}"})
            return
        topics = subscription.topics.union(said.topics) if said.type == "subscribe" else subscription.topics.difference(said.topics)
        subscription.change(topics)
        self._tell(subscription, "answer", {"type": "subscribed", "topics": sorted(topics)})

    def on_close(self) -> None:
        """The connection has ended."""
        super().on_close()
        self.leave()
        if self._writer is not None:
            self._writer.cancel()
