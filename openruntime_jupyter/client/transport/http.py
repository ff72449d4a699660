"""HTTP backend for a runtime in Jupyter Server or a stand-alone server, with its errors. Imports nothing from Jupyter."""

from __future__ import annotations

import json
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from openruntime_jupyter import __version__
from openruntime_jupyter.client.transport.forks import reset_in_child
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT
from openruntime_jupyter.client.transport.retry import Retries, current_limit
from openruntime_jupyter.client.transport.watch import OnMessage, Watch
from openruntime_jupyter.client.transport.websocket import SocketEvents
from openruntime_jupyter.environment import is_loopback
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, NotConnected, OpenRuntimeError, Unavailable
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.endpoints import (
    EVENT_STREAM,
    GET_ARRAY,
    GET_TASK,
    JSON,
    PREFER,
    PUT_ARRAY,
    SAFETENSORS,
    STREAM_TOKENS,
    Endpoint,
)
from openruntime_jupyter.schemas.problems import error_of
from openruntime_jupyter.schemas.values import LEASE_HEADER, LEASED

PATIENCE = 30.0
"""Response timeout in seconds, in addition to the requested wait. Busy servers are slow."""

USER_AGENT = f"{__name__.partition('.')[0]}/{__version__}"

REFUSED = (401, 403)
"""Status codes for a missing, invalid or expired token."""

PIECE = 1 << 20
"""Size in bytes of a download chunk."""

Result = TypeVar("Result")


class HttpBackend:
    """`Backend` over HTTP.

    Nothing is sent before the first request.

    Parameters
    ----------
    url
        The parent of `/health`, such as `http://127.0.0.1:8000` or `http://127.0.0.1:8888/openruntime`.
    token
        Token for the `Authorization` header.
    patience
        Response timeout in seconds, in addition to the requested wait.
    local
        True for a server on this machine; the default tests for a loopback address. Local requests bypass proxies and accept any
        TLS certificate, because certificates name a host and not the loopback address.
    renew
        Returns the server's current token, or None. A restarted server has a new token.

    Raises
    ------
    InvalidRequest
        If `url` or `token` is invalid.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        patience: float = PATIENCE,
        local: bool | None = None,
        renew: Callable[[], str | None] | None = None,
    ) -> None:
        self.where = url.rstrip("/")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidRequest.of("token", "has characters that are not allowed in HTTP headers")
        try:
            parsed = httpx.URL(self.where)
            self.local = is_loopback(parsed.host) if local is None else local
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem
        if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 80) > 65535:
            raise InvalidRequest.of("url", f"{url!r} is not an http:// or https:// address")
        self._token = token
        self._renew = renew
        self._patience = patience
        self._reached = False
        self._lock = threading.Lock()
        self._events: SocketEvents | None = None
        self._client: httpx.Client | None = None
        self._finalizer: weakref.finalize[..., HttpBackend] | None = None
        reset_in_child(self)

    def call(
        self,
        endpoint: Endpoint[Result],
        *ids: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        wait: float = 0.0,
    ) -> Result:
        """Call an endpoint. Lost connections, 429 and 503 are retried, with the same key; see `retry.py`."""
        wait = max(0.0, min(wait, LONGEST_WAIT))
        query, body, headers = dict(query or {}), dict(body or {}), {}
        if key is not None:
            headers["Idempotency-Key"] = key
        if PREFER in endpoint.headers:
            headers["Prefer"] = f"wait={math.ceil(wait)}" if wait else "respond-async"
        elif wait and endpoint.query is not None and "wait" in endpoint.query.model_fields:
            query["wait"] = wait
        elif wait and endpoint.body is not None:
            body["wait"] = wait
        content: bytes | None = None
        if endpoint.method in ("POST", "PATCH"):
            content, headers["Content-Type"] = _json(body), JSON
        timeout = self._timeout(wait + endpoint.seconds)
        retries = Retries(wait if endpoint is GET_TASK else 0.0)  # the server may restart while a task runs
        sent = {"headers": headers, "params": _params(query), "timeout": timeout}
        response = self._send(endpoint, endpoint.url(*ids), lambda: content, retries, **sent)
        return self._parsed(endpoint, response)

    def upload(self, array_id: str, pieces: Callable[[], Iterable[bytes]], size: int) -> ArrayInfo:
        """Upload the contents of an array."""
        headers = {"Content-Type": SAFETENSORS, "Content-Length": str(size)}
        path, timeout = PUT_ARRAY.url(array_id), self._timeout()
        return self._parsed(PUT_ARRAY, self._send(PUT_ARRAY, path, pieces, Retries(), headers=headers, timeout=timeout))

    def download(self, array_id: str) -> Iterator[bytes]:
        """Yield the safetensors file of an array in chunks. A download that breaks continues where it was."""
        retries, received = Retries(), 0
        while True:
            try:
                with self._streamed(GET_ARRAY.url(array_id), SAFETENSORS, {"Range": f"bytes={received}-"} if received else {}) as answer:
                    skipped = 0 if answer.status_code == httpx.codes.PARTIAL_CONTENT else received
                    for piece in answer.iter_bytes(PIECE):
                        new, skipped = piece[skipped:], max(0, skipped - len(piece))
                        received += len(new)
                        yield new
                return
            except (NotConnected, Unavailable) as problem:
                _retry(retries, problem)

    def tokens(self, task_id: str, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text of an AI task. A stream that breaks, or is silent for `patience` seconds, continues where it was."""
        retries = Retries()
        while True:
            try:
                with self._streamed(f"{STREAM_TOKENS.url(task_id)}?since={since}", EVENT_STREAM) as answer:
                    for event, data in events(answer.iter_lines()):
                        if event == "task":  # the last event
                            return
                        if event == "token":
                            piece = json.loads(data)
                            since, retries = piece["index"] + len(piece["text"]), Retries()
                            yield piece["index"], piece["text"]
                    raise httpx.RemoteProtocolError("the stream ended before the task")
            except (NotConnected, Unavailable) as problem:
                _retry(retries, problem)

    def watch(self, topics: Iterable[str], on_message: OnMessage) -> Watch:
        """Subscribe to events."""
        with self._lock:
            if self._events is None:
                self._events = SocketEvents(self.where, self.renewed_token, self.local)
        return self._events.watch(topics, on_message)

    @property
    def has_token(self) -> bool:
        """Return whether requests carry a token."""
        return self._token is not None

    def knock(self, origin: str) -> int:
        """Return the status of an empty submission without a token from a page of `origin`. No task is created."""
        try:
            with httpx.Client(trust_env=not self.local, verify=not self.local, timeout=self._patience) as stranger:
                return stranger.post(f"{self.where}/tasks", json={"operation": ""}, headers={"Origin": origin}).status_code
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem

    def close(self) -> None:
        """Close the connections. A later request opens a new one."""
        with self._lock:
            self._client = None
            if self._finalizer is not None:
                self._finalizer()

    def after_fork(self) -> None:
        """Reset the state in a forked child. The child's next request opens a new connection."""
        self._lock = threading.Lock()
        self._client = None
        if self._finalizer is not None:
            self._finalizer.detach()  # closing the pool needs its lock, which a thread of the parent may have held

    def _timeout(self, seconds: float = 0.0) -> httpx.Timeout:
        patience = current_limit().left(seconds + self._patience)
        return httpx.Timeout(patience, connect=min(10.0, self._patience))

    def _parsed(self, endpoint: Endpoint[Result], response: httpx.Response) -> Result:
        if response.status_code >= 300:
            raise from_answer(self.where, response)
        if response.status_code == 204:
            raise NotAllowed("Done, but the record is not shown: ask the administrator of the server for the permission to read")
        try:
            return endpoint.read(response.content)
        except ValueError as problem:
            raise not_openruntime(self.where, response) from problem

    @contextmanager
    def _streamed(self, path: str, accept: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Return a streamed response."""
        headers = {"Accept": accept, **(headers or {})}
        try:
            with self._http().stream("GET", self.where + path, headers=headers, timeout=self._patience) as answer:
                if answer.status_code >= 300:
                    answer.read()
                    raise from_answer(self.where, answer)
                yield answer
        except TRANSLATED as problem:
            raise translate(problem, self.where) from problem

    def _send(
        self, endpoint: Endpoint[Any], path: str, content: Callable[[], Iterable[bytes] | bytes | None], retries: Retries, **options: Any
    ) -> httpx.Response:
        first = True
        while True:
            sent = self._token
            try:
                response = self._http().request(endpoint.method, self.where + path, content=content(), **options)
            except TRANSLATED as problem:
                lost = isinstance(problem, LOST_ON_THE_WAY)
                restarting = self._reached and isinstance(problem, httpx.ConnectError)
                # A server closes idle connections: the first retry is immediate.
                if not (lost or restarting) or not retries.wait(0.0 if lost and first else None):
                    raise translate(problem, self.where) from problem
                first = False
                continue
            self._reached = True
            if response.status_code in REFUSED and self.renewed_token() != sent:  # a restarted server has a new token
                continue
            if not _temporary(response) or not retries.wait(_seconds(response.headers.get("retry-after"))):
                return response

    def renewed_token(self) -> str | None:
        """Return the server's current token and use it for later requests. Another thread may have updated it already."""
        found = self._renew() if self._renew is not None else None
        with self._lock:
            if found is not None and found != self._token:
                self._token = found
                if self._client is not None:
                    self._client.headers["Authorization"] = f"Bearer {found}"
            return self._token

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                headers = {"Accept": "application/json", "User-Agent": USER_AGENT, LEASE_HEADER: LEASED}
                if self._token:
                    headers["Authorization"] = f"Bearer {self._token}"
                # Proxies can't reach the loopback address and must not see its token.
                self._client = httpx.Client(headers=headers, trust_env=not self.local, verify=not self.local, follow_redirects=False)
                # Also closes connections of clients that are dropped without close().
                self._finalizer = weakref.finalize(self, self._client.close)
            return self._client


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as problem:
        raise InvalidRequest.of("parameters", f"can't be encoded as JSON: {problem}") from None


def _params(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parameters of a query without None; a list is repeated."""
    given = [(name, each) for name, value in query.items() for each in (value if isinstance(value, list) else [value])]
    return [(name, _text(value)) for name, value in given if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield server-sent events as (name, data). Skips comments, ids and events without data."""
    name, data = "message", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []


TRANSLATED = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict, UnicodeError)
"""Base classes of all httpx exceptions, and the error for a host name that can't be encoded."""

LOST_ON_THE_WAY = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)
"""Errors of an established connection."""

AGAIN = "start it again (restart Jupyter Server, or run `jupyter openruntime`)"
ABSENT = "No response from {where}: " + AGAIN + ", or give connect() another url"
SLOW = "Timeout waiting for {where}: it is overloaded or has stopped. If it is running, so are its tasks: query them by id"
BROKEN = "Lost the connection to {where} during a response: " + AGAIN + ", and query its tasks by id"
FOREIGN = "{where} does not respond like OpenRuntime ({problem}): check the url"
PROXY = "The proxy rejected the request to {where} ({problem}): check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
MISUSED = "Could not send the request to {where}: {problem}"

MESSAGES: dict[type[Exception], str] = {
    httpx.ConnectError: ABSENT,
    httpx.ConnectTimeout: ABSENT,
    httpx.ReadTimeout: SLOW,
    httpx.WriteTimeout: SLOW,
    httpx.PoolTimeout: SLOW,
    httpx.TimeoutException: SLOW,
    httpx.ReadError: BROKEN,
    httpx.WriteError: BROKEN,
    httpx.CloseError: BROKEN,
    httpx.NetworkError: BROKEN,
    httpx.RemoteProtocolError: BROKEN,
    httpx.ProtocolError: FOREIGN,
    httpx.DecodingError: FOREIGN,
    httpx.TooManyRedirects: FOREIGN,
    httpx.HTTPStatusError: FOREIGN,
    httpx.CookieConflict: FOREIGN,
    httpx.ProxyError: PROXY,
    httpx.LocalProtocolError: MISUSED,
    httpx.TransportError: MISUSED,
    httpx.RequestError: MISUSED,
    httpx.HTTPError: MISUSED,
    httpx.StreamError: MISUSED,
    httpx.StreamConsumed: MISUSED,
    httpx.StreamClosed: MISUSED,
    httpx.ResponseNotRead: MISUSED,
    httpx.RequestNotRead: MISUSED,
}
"""Message for each httpx exception. A test enumerates them, so that new exceptions get a message."""

BAD_URL = (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError)
"""Errors of the caller, translated to `InvalidRequest`."""


def translate(problem: Exception, where: str) -> OpenRuntimeError:
    """Return the package's error for an httpx exception, with advice."""
    if isinstance(problem, BAD_URL):
        return InvalidRequest.of("url", f"{where!r} can't be used: {problem}")
    message = next(MESSAGES[kind] for kind in type(problem).__mro__ if kind in MESSAGES)
    return NotConnected(message.format(where=where, problem=str(problem) or type(problem).__name__))


def not_openruntime(where: str, response: httpx.Response) -> NotConnected:
    """Return the error for a response from another program, a proxy or a login page."""
    return NotConnected(
        FOREIGN.format(where=where, problem=f"status {response.status_code}, {response.headers.get('content-type', 'no content type')}")
    )


def from_answer(where: str, response: httpx.Response) -> OpenRuntimeError:
    """Return the runtime's error for an HTTP error response."""
    try:
        body = response.json()
        message, data = body["error"], body.get("data") or {}
        details = data.get("details") or []
        if not isinstance(message, str):
            raise TypeError(message)
    except (ValueError, KeyError, TypeError, AttributeError):
        if response.status_code in (401, 403):
            return NotAllowed(f"{where} denied access (status {response.status_code}): pass the server's token to connect()")
        return not_openruntime(where, response)
    return error_of(response.status_code, data.get("code"), message, details, _seconds(response.headers.get("retry-after")))


def _retry(retries: Retries, problem: NotConnected | Unavailable) -> None:
    """Wait before the next attempt of a stream, or raise its problem."""
    temporary = isinstance(problem.__cause__, httpx.TransportError) or problem.retry_after is not None
    if not temporary or not retries.wait(problem.retry_after):
        raise problem


def _temporary(response: httpx.Response) -> bool:
    """Return whether a retry can help: the server says when, or a proxy can't reach it."""
    if response.headers.get("content-type", "").startswith(JSON):
        return "retry-after" in response.headers
    return response.status_code in (429, 502, 503, 504)


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, or None without one. A date, which proxies may send, becomes a second."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return 1.0
