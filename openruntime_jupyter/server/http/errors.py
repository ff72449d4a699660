"""Conversion of errors to HTTP: status, message and envelope."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from tornado import web

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.endpoints import RETRY_AFTER
from openruntime_jupyter.schemas.problems import CLASSES, HTTP_CODES, code_of, snake_case, status_of
from openruntime_jupyter.schemas.tasks import Failure

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

PARAMETERS = "parameters."
"""Prefix of the fields of a task's parameters."""
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


def problem_of_failure(failure: Failure) -> Problem:
    """Return the HTTP representation of a task's failure, for endpoints that do not respond with the task.

    An exception of this package has its own status and code, others have status 503 and the kind of the failure as the code.
    """
    kind = CLASSES.get(snake_case(failure.type or ""))
    if kind is None:
        return Problem(503, str(failure.kind), failure.message[:LONGEST_ERROR])
    message = failure.message.removeprefix(f"{failure.type}: ")
    field, _, problem = message.partition(": ")
    if issubclass(kind, errors.InvalidRequest) and field.startswith(PARAMETERS):
        return _expected(kind.of(field, problem))
    return _expected(kind(message))


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


OPENAI_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Types of errors in OpenAI's format by status. Others are errors of the request or, from 500 on, of the server."""
OPENAI_FIELDS = {"prompt": "messages"}
"""Fields in OpenAI's format that differ from the parameters of a prompt."""
OPENAI_CODES = {"rate_limited": "rate_limit_exceeded", "context_exceeded": "context_length_exceeded"}
"""Codes in OpenAI's format that differ from those of this package."""


def openai_problem(problem: Problem, *, logged_in: bool) -> Problem:
    """Return a problem with the status, code and headers that clients of OpenAI's API expect; `logged_in` is False without a valid token.

    A header prevents these clients from repeating a request that would fail again.
    """
    status, code, headers = problem.status, OPENAI_CODES.get(problem.code, problem.code), dict(problem.headers)
    if status == 403 and not logged_in:
        status, code = 401, "invalid_api_key"
        headers["WWW-Authenticate"] = "Bearer"
    elif status == 422:
        status, code = (404, "model_not_found") if _field(problem) == f"{PARAMETERS}model" else (400, code)
    elif code == code_of(errors.ProviderBusy("")):
        status = 429
    if status >= 500 and RETRY_AFTER not in headers:
        headers["X-Should-Retry"] = "false"
    return replace(problem, status=status, code=code, headers=headers)


def openai_error(problem: Problem) -> dict[str, Any]:
    """Return the body of an error in OpenAI's format. Fields of a task's parameters have the name of the request's field."""
    kind = OPENAI_KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    field, message = _field(problem), problem.message
    if field == f"{PARAMETERS}parameters":  # of a remote model: the problem begins with the option
        field, message = problem.details[0]["problem"].partition(":")[0] if problem.details else None, message.removeprefix(f"{field}: ")
    param = None if field is None else field.removeprefix(PARAMETERS)
    return {
        "error": {
            "message": message.removeprefix(PARAMETERS),
            "type": kind,
            "param": OPENAI_FIELDS.get(param or "", param),
            "code": problem.code,
        }
    }


def _field(problem: Problem) -> str | None:
    """Return the first invalid field of a request."""
    return problem.details[0]["field"] if problem.details else None


def enveloped(data: bytes) -> bytes:
    """Return encoded JSON in the envelope of a successful response."""
    return b'{"status":"success","data":%b,"error":null,"timestamp":"%b"}' % (data, timestamp(time.time()).encode())
