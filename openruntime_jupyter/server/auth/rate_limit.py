"""Rate limits per user, or per address without a login: requests per minute, concurrent requests and WebSockets."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from tornado.httputil import HTTPServerRequest
from traitlets import Bool, HasTraits, Int, List, TraitError, Unicode, default, validate

from openruntime_jupyter.errors import RateLimited

MAX_CLIENTS = 10_000
"""Maximum number of tracked clients. The one that is tracked for the longest time is dropped."""
LARGEST = 1_000_000

REFERENCE = {"max_requests_per_minute": 1_000, "max_connections": 100, "max_websockets": 10}
"""Limits that the reference recommends for production."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class LimitsTraits(HasTraits):
    """Traits of the rate limits."""

    production = Bool(
        False,
        help="""True: the three limits below default to production values: 1,000 requests per minute, 100 connections, 10 WebSockets.
        A limit that is set explicitly keeps its value.""",
    ).tag(config=True)
    max_requests_per_minute = Int(
        0,
        min=0,
        max=LARGEST,
        help="""Maximum number of requests per user and minute. Further requests get status 429 with Retry-After. Clients without a
        login are counted by address. 0: no limit, unless `production` is on and this is not set.""",
    ).tag(config=True)
    max_connections = Int(
        0,
        min=0,
        max=LARGEST,
        help="""Maximum number of concurrent requests per user, including WebSockets. Idle connections do not count.
        0: no limit, unless `production` is on and this is not set.""",
    ).tag(config=True)
    max_websockets = Int(
        0,
        min=0,
        max=LARGEST,
        help="""Maximum number of WebSockets per user. Further ones are closed with code 4029. 0: no limit, unless `production` is on
        and this is not set.""",
    ).tag(config=True)
    trusted_proxies = List(
        Unicode(),
        help="""Addresses or networks (10.0.0.0/8) of proxies whose X-Forwarded-For header is trusted when clients are counted by
        address. Empty: the header is ignored.""",
    ).tag(config=True)

    @default("max_requests_per_minute")
    def _requests(self) -> int:
        return REFERENCE["max_requests_per_minute"] if self.production else 0

    @default("max_connections")
    def _connections(self) -> int:
        return REFERENCE["max_connections"] if self.production else 0

    @default("max_websockets")
    def _websockets(self) -> int:
        return REFERENCE["max_websockets"] if self.production else 0

    @validate("trusted_proxies")
    def _networks(self, proposal: dict[str, Any]) -> list[str]:
        networks: list[str] = proposal["value"]
        try:
            for each in networks:
                ipaddress.ip_network(each, strict=False)
        except ValueError as problem:
            raise TraitError(f"trusted_proxies: {problem}; use addresses like 10.0.0.1 or networks like 10.0.0.0/8") from None
        return networks

    def limits_of(self) -> Limits:
        """Return the limits of these traits."""
        return Limits(self.max_requests_per_minute, self.max_connections, self.max_websockets, self.trusted_proxies)


class RequestRate:
    """Number of requests in any 60 seconds by client, counted by the package `limits`."""

    def __init__(self, requests: int) -> None:
        # Imported only by servers with this limit: it would add 140 ms of CPU time to the start of every Jupyter Server.
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._item = RateLimitItemPerMinute(requests)
        self._storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._storage)

    def take(self, client: str) -> float:
        """Count a request. Return 0.0 if it is admitted; otherwise don't count it, and return the seconds until the next one is."""
        if self._limiter.hit(self._item, client):
            clients = self._storage.events
            if len(clients) > MAX_CLIENTS:
                self._storage.clear(next(iter(clients)))
            return 0.0
        return max(1.0, self._limiter.get_window_stats(self._item, client).reset_time - time.time())


class Limits:
    """Rate limits with the state of all clients. A limit of 0 disables the limit."""

    def __init__(self, requests: int, connections: int, websockets: int, proxies: Iterable[str] = ()) -> None:
        self.on = bool(requests or connections or websockets)
        """Whether any limit is enabled."""
        self._requests = requests
        self._connections = connections
        self._websockets = websockets
        self._proxies: list[Network] = [ipaddress.ip_network(each, strict=False) for each in proxies]
        self._rate = RequestRate(requests) if requests else None
        self._open: dict[tuple[str, bool], int] = {}

    def enter(self, client: str, websocket: bool) -> Callable[[], None]:
        """Admit a request of `client`. Return a function to call once when the request ends.

        Raises `RateLimited`. A request that exceeds the request rate is not counted; one that exceeds the number of connections is.
        """
        self._count(client)
        sockets, others = self._open.get((client, True), 0), self._open.get((client, False), 0)
        if websocket and 0 < self._websockets <= sockets:
            raise RateLimited(f"You have {sockets} open WebSockets: close one, or ask for a higher OpenRuntimeApp.max_websockets", 5.0)
        if 0 < self._connections <= sockets + others:
            raise RateLimited(f"You have {sockets + others} active requests: wait, or ask for a higher OpenRuntimeApp.max_connections")
        self._open[client, websocket] = (sockets if websocket else others) + 1
        return lambda: self._leave(client, websocket)

    def _count(self, client: str) -> None:
        seconds = self._rate.take(client) if self._rate is not None else 0.0
        if seconds:
            raise RateLimited(
                f"Rate limit of {self._requests} requests per minute exceeded: slow down, or ask for a higher "
                "OpenRuntimeApp.max_requests_per_minute",
                math.ceil(seconds),
            )

    def _leave(self, client: str, websocket: bool) -> None:
        left = self._open.pop((client, websocket)) - 1
        if left:
            self._open[client, websocket] = left

    def client(self, request: HTTPServerRequest, user: str | None) -> str:
        """Return the client key of a request: the user, or the address without a login. For IPv6 it is the /64 network."""
        if user is not None:
            return f"user {user}"
        address = self._address(request)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False))
        return str(address or "a local socket")

    def _address(self, request: HTTPServerRequest) -> Address | None:
        """Return the address of the client: the last hop that is not a trusted proxy. None for a socket without an address."""
        peer = getattr(getattr(request.connection, "context", None), "address", None)
        address = _parsed(str(peer[0])) if isinstance(peer, tuple) else None
        if self._proxies:
            for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
                forwarded = _parsed(hop)
                if forwarded is None or not self._trusts(address):
                    break
                address = forwarded
        return address

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)


def _parsed(text: str) -> Address | None:
    """Parse a numeric address with an optional port. Convert an IPv4-mapped IPv6 address to IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
