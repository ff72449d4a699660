"""Translation of httpx exceptions and HTTP error responses into the package's errors."""

from __future__ import annotations

import httpx

from openruntime_jupyter.errors import InvalidRequest, NotAllowed, NotConnected, OpenRuntimeError
from openruntime_jupyter.schemas.problems import error_of

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
        message, details = body["error"], (body.get("data") or {}).get("details") or []
        if not isinstance(message, str):
            raise TypeError(message)
    except (ValueError, KeyError, TypeError, AttributeError):
        if response.status_code in (401, 403):
            return NotAllowed(f"{where} denied access (status {response.status_code}): pass the server's token to connect()")
        return not_openruntime(where, response)
    return error_of(response.status_code, message, details, _seconds(response.headers.get("retry-after")), response.url.path)


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 1.0))
    except ValueError:  # an HTTP date, which proxies may send
        return 1.0
