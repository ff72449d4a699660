"""The one place that turns errors into HTTP: which status, which message, and the envelope that carries both."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tornado import web

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.base import timestamp

STATUS: tuple[tuple[type[errors.OpenRuntimeError], int], ...] = (
    (errors.InvalidRequest, 422),
    (errors.MalformedRequest, 400),
    (errors.BodyTooLarge, 413),
    (errors.NotAllowed, 403),
    (errors.TaskNotFound, 404),
    (errors.SessionNotFound, 404),
    (errors.ModelNotFound, 404),
    (errors.ConversationNotFound, 404),
    (errors.TaskConflict, 409),
    (errors.ArrayNotFound, 404),
    (errors.ArrayConflict, 409),
    (errors.WouldDeadlock, 409),
    (errors.RateLimited, 429),
    (errors.Unavailable, 503),
    (errors.EngineError, 503),
    (errors.NotConnected, 503),
    (errors.ProviderError, 503),
    (errors.PullFailed, 503),
    # A task that failed is a 200 whose body says so; here these could only come from a fault of ours.
    (errors.TaskError, 500),
    (errors.MapFailed, 500),
)
"""From the errors this package raises on purpose to their status; the first that fits counts, so a subclass has its parent's."""

ADVICE = {
    400: "The request could not be read: see GET /operations and the API reference for what is expected",
    401: "Log in first",
    403: "Ask whoever runs this server for that permission, or send its token as `Authorization: token <token>`",
    404: "Nothing is here: see the API reference for the routes that there are",
    405: "This route has no such method",
    408: "No more of the body came: send it again, and without such a pause",
    413: "The body is too large: make it smaller",
    415: "Send JSON, with `Content-Type: application/json`",
    426: "Connect with version 13 of the WebSocket protocol, which is that of RFC 6455",
}
"""What to do about an error that tornado or Jupyter raised without saying so."""

XSRF = "Send the value of the cookie _xsrf as the header X-XSRFToken, or the server's token as `Authorization: token <token>`"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """An error as HTTP sees it."""

    status: int
    message: str
    details: list[dict[str, str]] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def problem_of(error: BaseException | None, status: int = 500) -> Problem:
    """What to answer about `error`; `status` is for where there is none.

    What was not raised on purpose is logged with its traceback under an id that the message names, and nothing of its
    insides is told.
    """
    if isinstance(error, errors.OpenRuntimeError):
        return _on_purpose(error)
    if isinstance(error, web.HTTPError):
        return _from_tornado(error)
    if error is None and status < 500:
        return Problem(status, ADVICE.get(status, "The request was refused"))
    return unexpected(error)


def unexpected(error: BaseException | None) -> Problem:
    """The answer about a fault of ours, which is logged."""
    name = uuid.uuid4().hex[:12]
    log.error("Error %s: %r", name, error, exc_info=error)
    return Problem(500, f"Something went wrong inside the server. It is logged there as error {name}: ask whoever runs it to look that up")


def _on_purpose(error: errors.OpenRuntimeError) -> Problem:
    status = next((status for kind, status in STATUS if isinstance(error, kind)), None)
    if status is None or status == 500:
        return unexpected(error)
    headers = {}
    if status in (429, 503):
        # Whole seconds, and never 0, which would invite a busy loop.
        headers["Retry-After"] = str(max(1, round(error.retry_after or 5)))
    details = error.details or None if isinstance(error, errors.InvalidRequest) else None
    return Problem(status, str(error), details, headers)


def _from_tornado(error: web.HTTPError) -> Problem:
    status = error.status_code
    if status >= 500:
        return unexpected(error)
    message = ADVICE.get(status) or error.reason or "The request was refused"
    if isinstance(error, web.MissingArgumentError):
        message = f"The query parameter {error.arg_name} is missing"
    elif status in (400, 403) and error.log_message:
        # Jupyter's own words, such as which permission is missing, say more than the status alone.
        told = error.log_message % error.args if error.args else error.log_message
        message = f"{told.rstrip('.')}. {XSRF if '_xsrf' in told or 'XSRF' in told else message}"
    return Problem(status, message)


def envelope(data: Any, error: str) -> dict[str, Any]:
    """The reference's common response format, of an error."""
    return {"status": "error", "data": data, "error": error, "timestamp": timestamp(time.time())}


def enveloped(data: bytes) -> bytes:
    """`data`, which is JSON, in the same format."""
    return b'{"status":"success","data":%b,"error":null,"timestamp":"%b"}' % (data, timestamp(time.time()).encode())
