"""WebSocket `/ws` for live events: an adapter of the event bus to tornado."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from jupyter_server.base.websocket import WebSocketMixin
from pydantic import ValidationError
from tornado import web, websocket

from openruntime_jupyter import __version__
from openruntime_jupyter.errors import MalformedRequest, NotAllowed, OpenRuntimeError, RateLimited
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.runtime.events import Event, Subscription
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.endpoints import CONNECT_EVENTS, VERSION_HEADER
from openruntime_jupyter.schemas.events import ClientMessage
from openruntime_jupyter.schemas.queries import EventsQuery
from openruntime_jupyter.server.auth.identity import token_of
from openruntime_jupyter.server.http.base import OTHER_PAGE, BaseHandler, NotLoggedIn, serves

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

HEARTBEAT_SECONDS = 5.0
STUCK_SECONDS = 30.0
"""Seconds that one message may wait for the client to read it before the connection is closed."""
PING_SECONDS = 30.0
LONGEST_MESSAGE = 65_536
"""Maximum size of a client message in bytes."""

VERSION = "13"
"""Protocol version of RFC 6455."""
GOING_AWAY = 1001
TRY_AGAIN_LATER = 1013
UNAUTHORIZED = 4001
FORBIDDEN = 4003
TOO_MANY_REQUESTS = 4029
LONGEST_REASON = 123
"""Maximum size of the reason in a close frame in bytes."""
NO_PERMISSION = "The permission to read openruntime is missing: ask the administrator of this server for it"
TOO_SLOW = "The client reads too slowly: reconnect with ?since=ID of the last received message"


class EventsSocket(WebSocketMixin, websocket.WebSocketHandler, BaseHandler):
    """Connection of one client.

    All messages go through one bounded queue and one writer, which waits until the client has read each message. A client that
    does not read therefore uses a bounded amount of memory and delays no other client. It is disconnected when the queue is full.
    """

    is_websocket = True
    _runtime: Runtime
    _over_limit: RateLimited | None = None
    _refused: tuple[int, str] | None = None
    """Close code and reason for a client that must not connect."""
    _query: EventsQuery
    _subscription: Subscription | None = None
    _writer: asyncio.Task[None] | None = None
    _beating = False

    @property
    def max_message_size(self) -> int:
        """Maximum size in bytes; a longer message closes the connection."""
        return LONGEST_MESSAGE

    @property
    def ping_interval(self) -> float:
        """Seconds between tornado's pings. Jupyter's mixin returns milliseconds, which tornado interprets as seconds."""
        return PING_SECONDS

    @property
    def ping_timeout(self) -> float:
        """Seconds after which a client that does not answer a ping is disconnected."""
        return PING_SECONDS

    def set_default_headers(self) -> None:
        """Set none of Jupyter's headers for pages: the handshake sets its own."""
        self.set_header(VERSION_HEADER, __version__)

    async def prepare(self, **options: Any) -> None:
        """Authenticate the request. Refuse a client without a login by a close code, because browsers hide why a handshake failed.

        Pages of other origins without a token get a failed handshake, which tells them nothing about this server.
        """
        try:
            await super().prepare(**options)
        except NotLoggedIn as problem:
            if not (self.presents_token or self.check_origin()):
                raise
            await self._refuse(UNAUTHORIZED, problem)

    @property
    def presents_token(self) -> bool:
        """Return whether the request has a token, which may be wrong."""
        return bool(token_of(self.identity_provider, self))

    def check_origin(self, origin: str | None = None) -> bool:
        """Apply Jupyter's check, except for a refused client, which only gets a close code."""
        return self._refused is not None or bool(super().check_origin(origin))

    async def _refuse(self, code: int, problem: OpenRuntimeError) -> None:
        """Open the WebSocket and close it with `code` and the error's message. Raise the error if the request opens no WebSocket."""
        if self._no_handshake() is not None:
            raise problem
        self._refused = code, str(problem)
        await super().get()

    def admit(self) -> None:
        """Count the connection. An exceeded limit is reported by a close code as well."""
        try:
            super().admit()
        except RateLimited as problem:
            self._over_limit = problem

    def on_finish(self) -> None:
        """Release the connection's slot, unless the handshake succeeded and the connection continues."""
        if self.get_status() != 101:
            super().on_finish()

    @serves(CONNECT_EVENTS)
    async def get(self) -> None:
        """Connect a WebSocket for live events.

        Each message is a JSON text with an `id` that never decreases. `connected`, `heartbeat` and `task_update` are always sent.
        To get the topics `task_progress`, `task_output`, `ai_token` and `metrics` from the first message on, name them in `topics`; to get
        them later, send `{"type": "subscribe", "topics": ["metrics"]}`; to stop them, send `unsubscribe`. The close code tells why a
        connection ended: 1001: the server stops; 1013: the client reads too slowly and can resume with `since`; 4001: the token is
        missing or wrong; 4003: a permission is missing; 4029: the client exceeds a limit for connections or requests.
        `x-websocket` describes the messages, because OpenAPI cannot.
        """
        # All checks happen while the response can still be an HTTP error.
        if not self.check_origin():
            raise NotAllowed(OTHER_PAGE.format(self.get_origin()))
        if not await self.allowed("read"):
            await self._refuse(FORBIDDEN, NotAllowed(NO_PERMISSION))
            return
        problem = self._no_handshake()
        if problem is not None:
            raise self._over_limit or problem
        self._query = self.query(EventsQuery)
        self._runtime = await self.runtime()
        await super().get()

    def _no_handshake(self) -> Exception | None:
        """Return the error of an invalid handshake, or None. The errors of tornado would not use the envelope."""
        headers = self.request.headers
        connection_options = [name.strip().lower() for name in headers.get("Connection", "").split(",")]
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in connection_options:
            return MalformedRequest(
                "This is a WebSocket: connect to it with ws:// or wss://, and only through proxies that forward the Upgrade header"
            )
        if not headers.get("Sec-WebSocket-Key"):
            return MalformedRequest("The header Sec-WebSocket-Key is missing: connect as a WebSocket")
        return None if headers.get("Sec-WebSocket-Version") == VERSION else web.HTTPError(426)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the error envelope, with the supported version to a client of another version."""
        if status_code == 426:
            self.set_header("Sec-WebSocket-Version", VERSION)
        super().write_error(status_code, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Send the first message, then events until the connection closes."""
        # Bypass the mixin, which would start its own pings in addition to tornado's.
        websocket.WebSocketHandler.open(self, *args, **kwargs)
        self.set_nodelay(True)
        if self._over_limit is not None:
            self._refused = TOO_MANY_REQUESTS, str(self._over_limit)
        if self._refused is not None:
            code, reason = self._refused
            self.close(code, reason.encode()[:LONGEST_REASON].decode(errors="ignore"))
            return
        bus, since = self._runtime.bus, self._query.since
        newest = bus.last_id
        self._subscription, gap = bus.subscribe(("task_update", *(self._query.topics or ())), since)
        topics = sorted(self._subscription.topics)
        message = "Connected to OpenRuntime WebSocket"
        greeting: dict[str, Any] = {"type": "connected", "timestamp": iso(time.time()), "message": message, "topics": topics}
        if since is not None:
            greeting["gap"] = gap
        # The id must be lower than that of all following events, including repeated ones.
        first = Event(newest if since is None else min(since, newest), "connected", greeting)
        self._writer = self.services.in_background(self._write(first, self._subscription))

    async def _write(self, first: Event, subscription: Subscription) -> None:
        beat = asyncio.ensure_future(self._beat(subscription))
        try:
            received = await self._send(first)
            async for event in subscription:
                if not received:
                    break
                received = await self._send(event)
            if not received or subscription.overflowed:
                self.close(TRY_AGAIN_LATER, TOO_SLOW)
            else:
                self.close(GOING_AWAY, "The server is stopping")
        except websocket.WebSocketClosedError:
            pass  # the client has disconnected
        finally:
            beat.cancel()
            subscription.close()

    async def _send(self, event: Event) -> bool:
        """Send a message. Return False if the client did not read it in time."""
        writing = asyncio.ensure_future(self.write_message(event.encoded))
        # Retrieve the exception of an abandoned message, so that asyncio does not log it.
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({writing}, timeout=STUCK_SECONDS)
        if not done:
            return False
        writing.result()
        if event.topic == "heartbeat":
            self._beating = False
        return True

    async def _beat(self, subscription: Subscription) -> None:
        """Queue a heartbeat every five seconds, but never two at once for a slow client."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._beating:
                self._beating = True
                metrics = self._runtime.metrics().model_dump()
                self._push(subscription, "heartbeat", {"type": "heartbeat", "timestamp": iso(time.time()), "metrics": metrics})

    def _push(self, subscription: Subscription, topic: str, body: dict[str, Any]) -> None:
        """Queue a message of the handler itself, after the events that came before it."""
        if not subscription.closed:
            subscription.push(Event(self._runtime.bus.last_id, topic, body))

    def on_message(self, message: str | bytes) -> None:
        """Change the subscription. Reply to other messages with an error and keep the connection open."""
        subscription = self._subscription
        if subscription is None or subscription.closed:
            return
        try:
            request = ClientMessage.model_validate_json(message)
        except ValidationError as problem:
            self._push(subscription, "answer", {"type": "error", "error": f"Invalid message: {invalid(problem)}"})
            return
        topics = (
            subscription.topics.union(request.topics) if request.type == "subscribe" else subscription.topics.difference(request.topics)
        )
        subscription.change(topics)
        self._push(subscription, "answer", {"type": "subscribed", "topics": sorted(topics)})

    def on_close(self) -> None:
        """Release the resources of the connection."""
        super().on_close()
        self.leave()
        if self._writer is not None:
            self._writer.cancel()
