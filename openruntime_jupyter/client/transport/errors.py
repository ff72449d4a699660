"""The edge between httpx and this package: what httpx raises, and what a server answers, as errors of ours."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from openruntime_jupyter.errors import (
    ArrayConflict,
    ArrayNotFound,
    BodyTooLarge,
    ConversationNotFound,
    InvalidRequest,
    MalformedRequest,
    ModelNotFound,
    NotAllowed,
    NotConnected,
    OpenRuntimeError,
    RateLimited,
    SessionEnded,
    SessionNotFound,
    TaskConflict,
    TaskNotFound,
    Unavailable,
    UnknownDevice,
    UnknownOperation,
)

TRANSLATED = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict, UnicodeError)
"""The roots of everything that httpx raises, and what a host's name does that no domain may have."""

LOST_ON_THE_WAY = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)
"""The connection broke after it was made."""

AGAIN = "start it again (restart Jupyter Server, or run `jupyter openruntime`)"
ABSENT = "nothing answers at {where}: " + AGAIN + ", or give connect() another url"
SLOW = "{where} does not answer in time: it is overloaded or gone; its tasks go on if it lives, so ask for them again by their ids"
BROKEN = "{where} went away in the middle of an answer: " + AGAIN + ", and find its tasks by their ids"
FOREIGN = "{where} does not speak like OpenRuntime ({problem}): check the url"
PROXY = "the proxy on the way to {where} refused: {problem}; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
MISUSED = "{where} could not be asked: {problem}"

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
"""What is said for each exception of httpx. A test enumerates them, so that a new one must be decided on."""

BAD_URL = (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError)
"""The caller's own mistake: `InvalidRequest`."""


def translate(problem: Exception, where: str) -> OpenRuntimeError:
    """httpx's exception as one of ours, with what to do about it."""
    if isinstance(problem, BAD_URL):
        return InvalidRequest.of("url", f"{where!r} can't be used: {problem}")
    said = next(MESSAGES[kind] for kind in type(problem).__mro__ if kind in MESSAGES)
    return NotConnected(said.format(where=where, problem=str(problem) or type(problem).__name__))


def not_openruntime(where: str, response: httpx.Response) -> NotConnected:
    """For an answer that no OpenRuntime gives: another program listens there, or a proxy or login page answers for it."""
    return NotConnected(
        FOREIGN.format(
            where=where, problem=f"it answered {response.status_code} with {response.headers.get('content-type', 'no content type')}"
        )
    )


def from_answer(where: str, response: httpx.Response) -> OpenRuntimeError:
    """A server's refusal as the error that the runtime raised."""
    try:
        body = response.json()
        message, details = body["error"], (body.get("data") or {}).get("details") or []
        if not isinstance(message, str):
            raise TypeError(message)
    except (ValueError, KeyError, TypeError, AttributeError):
        if response.status_code in (401, 403):
            return NotAllowed(f"{where} refuses (status {response.status_code}): give connect() the token of that server")
        return not_openruntime(where, response)
    return of_status(response.status_code, message, details, _seconds(response.headers.get("retry-after")), response.url.path)


def of_status(code: int, message: str, details: list[dict[str, str]], retry_after: float, path: str) -> OpenRuntimeError:
    """The error that `code` stands for; `retry_after` in seconds, `path` is where it was met."""
    if code == 422:
        return _invalid(message, details)
    if code in (429, 503):
        kind = RateLimited if code == 429 else Unavailable
        return kind(message, retry_after)
    plain: dict[int, Callable[[str], OpenRuntimeError]] = {
        400: MalformedRequest,
        401: NotAllowed,
        403: NotAllowed,
        404: _absent(path),
        409: ArrayConflict if "/arrays" in path else TaskConflict,
        413: BodyTooLarge,
        415: MalformedRequest,
    }
    return plain.get(code, OpenRuntimeError)(message)


def _absent(path: str) -> type[OpenRuntimeError]:
    if "/tasks/" in path:
        return TaskNotFound
    if "/sessions/" in path:
        return SessionNotFound
    if "/models/" in path:
        return ModelNotFound
    if "/ai/conversations/" in path:
        return ConversationNotFound
    return ArrayNotFound if "/arrays/" in path else NotConnected


ENDED = "has ended: "
"""Words of `SessionEnded.because`; other problems of the field `session` are wrong names."""


def _invalid(message: str, details: list[dict[str, str]]) -> InvalidRequest:
    fields = {detail.get("field") for detail in details}
    if any(detail.get("field") == "session" and ENDED in detail.get("problem", "") for detail in details):
        return SessionEnded(message, details)
    kinds: dict[str, type[InvalidRequest]] = {"operation": UnknownOperation, "device_preference": UnknownDevice}
    return next((kinds[field] for field in kinds if field in fields), InvalidRequest)(message, details)


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 1.0))
    except ValueError:  # a date, which a proxy may send
        return 1.0
