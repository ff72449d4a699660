"""Errors on the wire: the envelope, and status and code of each error class, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.base import Timestamp, Wire

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
    # A failed task is a response with status 200. A server that raises one of these errors has a bug.
    (errors.TaskError, 500),
    (errors.MapFailed, 500),
)
"""Status for each error class of this package. The first matching entry counts, so subclasses inherit the status."""

ROUTE_NOT_FOUND = "route_not_found"

HTTP_CODES = {
    400: "malformed_request",
    401: "not_allowed",
    403: "not_allowed",
    404: ROUTE_NOT_FOUND,
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "malformed_request",
    416: "range_not_satisfiable",
    426: "upgrade_required",
    500: "internal_error",
}
"""Code by status of the errors that HTTP itself defines. Other statuses of 400 and above have the code of 400."""


def snake_case(name: str) -> str:
    """Return the name of a class in snake case, for example `queue_full`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def status_of(error: errors.OpenRuntimeError) -> int | None:
    """Return the status of an error, or None for an unknown class."""
    return _status(type(error))


def _status(kind: type[object]) -> int | None:
    return next((status for known, status in STATUS if issubclass(kind, known)), None)


CLASSES: dict[str, type[errors.OpenRuntimeError]] = {
    snake_case(name): kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.OpenRuntimeError) and _status(kind) not in (None, 500)
}
"""Error class for each code of this package: the name of the class in snake case."""

CODES = tuple(sorted({*CLASSES, *HTTP_CODES.values()}))
"""All codes of error responses."""


def code_of(error: errors.OpenRuntimeError) -> str:
    """Return the code of an error, which for a subclass from elsewhere is that of its base class."""
    names = (snake_case(kind.__name__) for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return next((name for name in names if name in CLASSES), HTTP_CODES[500])


class Detail(Wire):
    """Problem with one field of a request."""

    field: str = Field(description="Dotted name of the field.")
    problem: str = Field(description="Description of the problem.")


class ErrorData(Wire):
    """Data of an error envelope."""

    # Not a Literal: newer servers have further codes.
    code: str = Field(
        description="Code of the error for programs. Newer servers may have further codes.", json_schema_extra={"enum": [*CODES]}
    )
    details: list[Detail] = Field(description="Problems with individual fields; empty for other errors.")


class ErrorEnvelope(Wire):
    """Response for every error of every route."""

    status: Literal["error"] = Field(description="Always `error`.")
    data: ErrorData = Field(description="Code of the error, and problems with individual fields.")
    error: str = Field(description="Error message with a suggested fix.")
    timestamp: Timestamp = Field(description="Time of the response.")


class SuccessEnvelope(Wire):
    """Envelope of a successful response, for clients that accept its content type."""

    status: Literal["success"] = Field(description="Always `success`.")
    data: Any = Field(description="Response as it is without the envelope.")
    error: None = Field(description="Always null.")
    timestamp: Timestamp = Field(description="Time of the response.")


BY_STATUS: dict[int, type[errors.OpenRuntimeError]] = {
    401: errors.NotAllowed,
    403: errors.NotAllowed,
    409: errors.TaskConflict,
    422: errors.InvalidRequest,
    429: errors.RateLimited,
    503: errors.Unavailable,
}
"""Error for responses whose code is missing or unknown, for example those of a proxy or a newer server."""


def error_of(
    status: int, code: str | None, message: str, details: Iterable[Mapping[str, str]] = (), retry_after: float | None = None
) -> errors.OpenRuntimeError:
    """Return the error for a response with this status and code. `retry_after` is in seconds."""
    unknown = errors.NotConnected if code == ROUTE_NOT_FOUND else BY_STATUS.get(status, errors.OpenRuntimeError)
    kind = CLASSES.get(code or "", unknown)
    error = kind(message, [dict(detail) for detail in details]) if issubclass(kind, errors.InvalidRequest) else kind(message)
    error.retry_after = retry_after
    return error
