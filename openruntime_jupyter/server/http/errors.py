"""Conversion of errors to HTTP: status, message and envelope."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tornado import web

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.endpoints import RETRY_AFTER
from openruntime_jupyter.schemas.problems import HTTP_CODES, code_of, status_of

ADVICE = {
    400: "The request could not be read: see GET /operations and the API reference for the expected format",
    401: "Log in first",
    403: "Ask the administrator of this server for the permission, or send the server's token as `Authorization: token <token>`",
    404: "Unknown route: see the API reference for the available routes",
    405: "This route does not support the method",
    408: "The body stalled or was too slow: send it again without a pause",
    413: "The body is too large: reduce it",
    415: "Send JSON, with `Content-Type: application/json`",
    426: "Connect with version 13 of the WebSocket protocol (RFC 6455)",
}
"""Messages with suggested fixes for errors of tornado and Jupyter."""

XSRF = "Send the value of the cookie _xsrf as the header X-XSRFToken, or the server's token as `Authorization: token <token>`"

LONGEST_ERROR = 10_000
"""Maximum length of a message in characters. Some messages quote values of the request."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """HTTP representation of an error."""

    status: int
    code: str
    message: str
    details: list[dict[str, str]] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def problem_of(error: BaseException | None, status: int = 500) -> Problem:
    """Return the HTTP representation of `error`; `status` is the status if `error` is None.

    Unexpected errors are logged with their traceback under an id. The message has only the id and no internal details.
    """
    if isinstance(error, errors.OpenRuntimeError):
        return _expected(error)
    if isinstance(error, web.HTTPError):
        return _from_tornado(error)
    if error is None and status < 500:
        return _of_http(status, ADVICE.get(status, "The request was rejected"))
    return unexpected(error)


def unexpected(error: BaseException | None) -> Problem:
    """Log an unexpected error and return a generic problem with the id of the log entry."""
    name = uuid.uuid4().hex[:12]
    log.error("Error %s: %r", name, error, exc_info=error)
    return _of_http(500, f"Internal server error {name}: ask the administrator to look up the id in the server's log")


def _expected(error: errors.OpenRuntimeError) -> Problem:
    status = status_of(error)
    if status is None or status == 500:
        return unexpected(error)
    headers = {}
    if error.retry_after is not None:
        # Whole seconds, and at least 1, because clients would retry in a busy loop with 0.
        headers[RETRY_AFTER] = str(max(1, round(error.retry_after)))
    details = error.details or None if isinstance(error, errors.InvalidRequest) else None
    return Problem(status, code_of(error), str(error)[:LONGEST_ERROR], details, headers)


def _from_tornado(error: web.HTTPError) -> Problem:
    status = error.status_code
    if status >= 500:
        return unexpected(error)
    message = ADVICE.get(status) or error.reason or "The request was rejected"
    if isinstance(error, web.MissingArgumentError):
        message = f"The query parameter {error.arg_name} is missing"
    elif status in (400, 403) and error.log_message:
        # Jupyter's message has details such as the missing permission.
        detail = error.log_message % error.args if error.args else error.log_message
        message = f"{detail.rstrip('.')}. {XSRF if '_xsrf' in detail or 'XSRF' in detail else message}"
    return _of_http(status, message)


def _of_http(status: int, message: str) -> Problem:
    return Problem(status, HTTP_CODES.get(status, HTTP_CODES[400]), message)


def envelope(problem: Problem) -> dict[str, Any]:
    """Return the envelope of an error, as defined by the reference."""
    data = {"code": problem.code, "details": problem.details or []}
    return {"status": "error", "data": data, "error": problem.message, "timestamp": timestamp(time.time())}


def enveloped(data: bytes) -> bytes:
    """Return encoded JSON in the envelope of a successful response."""
    return b'{"status":"success","data":%b,"error":null,"timestamp":"%b"}' % (data, timestamp(time.time()).encode())
