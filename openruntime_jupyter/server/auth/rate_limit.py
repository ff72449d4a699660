"""How much one user, or one address where nobody is logged in, may ask: requests a minute, connections and WebSockets at once."""

from __future__ import annotations

import ipaddress
import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from tornado.httputil import HTTPServerRequest
from traitlets import Bool, HasTraits, Int, List, TraitError, Unicode, default, validate

from openruntime_jupyter.errors import RateLimited

MINUTE = 60
SLOTS = MINUTE + 1
"""Seconds that are counted apart: those of the last minute, and the one that it begins in."""
MAX_CLIENTS = 10_000
"""Clients whose requests are remembered, at about 550 bytes each; past it, who has been silent longest is forgotten."""
LARGEST = 1_000_000

REFERENCE = {"max_requests_per_minute": 1_000, "max_connections": 100, "max_websockets": 10}
"""What the reference names for production."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class LimitsTraits(HasTraits):
    """The settings of the server, beside those of its runtime."""

    production = Bool(
        False,
        help="""Whether the three limits below are on with the reference's figures: 1,000 requests a minute, 100 connections, 10
        WebSockets. One that is set by itself is as it is set.""",
    ).tag(config=True)
    max_requests_per_minute = Int(
        0,
        min=0,
        max=LARGEST,
        help="""How many requests one user may send within a minute; one more is answered by 429 with Retry-After. Who is not logged in
        is counted by address. 0: no limit, unless `production` is on and this is not set.""",
    ).tag(config=True)
    max_connections = Int(
        0,
        min=0,
        max=LARGEST,
        help="""How many requests of one user may be under way at once, WebSockets among them; a connection without a request does not
        count. 0: no limit, unless `production` is on and this is not set.""",
    ).tag(config=True)
    max_websockets = Int(
        0,
        min=0,
        max=LARGEST,
        help="""How many WebSockets one user may have; one more is closed with code 4029. 0: no limit, unless `production` is on and
        this is not set.""",
    ).tag(config=True)
    trusted_proxies = List(
        Unicode(),
        help="""Addresses or networks (10.0.0.0/8) of proxies whose X-Forwarded-For is believed when a client is counted by address.
        Empty: nobody's is.""",
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
        given: list[str] = proposal["value"]
        try:
            for each in given:
                ipaddress.ip_network(each, strict=False)
        except ValueError as problem:
            raise TraitError(f"trusted_proxies: {problem}; give addresses such as 10.0.0.1 or networks such as 10.0.0.0/8") from None
        return given

    def limits_of(self) -> Limits:
        """The traits as `Limits`."""
        return Limits(self.max_requests_per_minute, self.max_connections, self.max_websockets, self.trusted_proxies)


class Window:
    """How many requests came in each second of the last minute.

    Never are more than the limit let in within any 60 seconds; who stays below it within 61 is never refused. Its size does not
    depend on the limit.
    """

    __slots__ = ("_counts", "_newest", "_total")

    def __init__(self) -> None:
        self._counts = array("I", [0]) * SLOTS
        self._newest = 0
        self._total = 0

    def take(self, limit: int, now: float) -> float:
        """Count one request at `now`, in seconds of a clock that never goes back.

        0.0, or, where `limit` of them have come already, the seconds until there is room; then it is not counted.
        """
        second = int(now)
        for passed in range(max(self._newest + 1, second - MINUTE), second + 1):
            self._total -= self._counts[passed % SLOTS]
            self._counts[passed % SLOTS] = 0
        self._newest = second
        if self._total < limit:
            self._counts[second % SLOTS] += 1
            self._total += 1
            return 0.0
        oldest = next(past for past in range(second - MINUTE, second + 1) if self._counts[past % SLOTS])
        return oldest + SLOTS - now


class Limits:
    """Who has asked how often, and has how much open. A limit of 0 is none.

    `clock` is in seconds and never goes back.
    """

    def __init__(
        self, requests: int, connections: int, websockets: int, proxies: Iterable[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on = bool(requests or connections or websockets)
        """Whether there is any limit."""
        self._requests = requests
        self._connections = connections
        self._websockets = websockets
        self._proxies: list[Network] = [ipaddress.ip_network(each, strict=False) for each in proxies]
        self._clock = clock
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._open: dict[tuple[str, bool], int] = {}

    def enter(self, who: str, websocket: bool) -> Callable[[], None]:
        """Let one more request of that client in; what is returned is to be called once, at its end.

        Raises `RateLimited`. A request that is refused for its number is not counted, one that is refused for what is open is.
        """
        self._count(who)
        sockets, others = self._open.get((who, True), 0), self._open.get((who, False), 0)
        if websocket and 0 < self._websockets <= sockets:
            raise RateLimited(f"You have {sockets} WebSockets: close one, or have OpenRuntimeApp.max_websockets raised", 5.0)
        if 0 < self._connections <= sockets + others:
            raise RateLimited(f"{sockets + others} requests of yours are under way: wait, or have OpenRuntimeApp.max_connections raised")
        self._open[who, websocket] = (sockets if websocket else others) + 1
        return lambda: self._leave(who, websocket)

    def _count(self, who: str) -> None:
        if not self._requests:
            return
        window = self._windows.get(who)
        if window is None:
            window = self._windows[who] = Window()
            if len(self._windows) > MAX_CLIENTS:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(who)
        seconds = window.take(self._requests, self._clock())
        if seconds:
            raise RateLimited(
                f"You sent {self._requests} requests in a minute: slow down, or have OpenRuntimeApp.max_requests_per_minute raised",
                math.ceil(seconds),
            )

    def _leave(self, who: str, websocket: bool) -> None:
        left = self._open.pop((who, websocket)) - 1
        if left:
            self._open[who, websocket] = left

    def client(self, request: HTTPServerRequest, user: str | None) -> str:
        """Whom a request counts for: the user, else the address, of which IPv6 has a whole network (/64) for everyone."""
        if user is not None:
            return f"user {user}"
        address = self._address(request)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False))
        return str(address or "a local socket")

    def _address(self, request: HTTPServerRequest) -> Address | None:
        """Where it comes from: the last address on its way that is no proxy of ours. None for a socket that has none."""
        peer = getattr(getattr(request.connection, "context", None), "address", None)
        address = _parsed(str(peer[0])) if isinstance(peer, tuple) else None
        if self._proxies:
            for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
                told = _parsed(hop)
                if told is None or not self._trusts(address):
                    break
                address = told
        return address

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)


def _parsed(text: str) -> Address | None:
    """An address in numbers, with a port where a proxy adds that; one of IPv4 that IPv6 has wrapped is unwrapped."""
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
