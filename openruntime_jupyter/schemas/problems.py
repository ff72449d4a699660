"""Errors on the wire: the envelope, and the status of each error class, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from pydantic import Field

from openruntime_jupyter import errors
from openruntime_jupyter.schemas.base import Timestamp, Wire


class Detail(Wire):
    """Problem with one field of a request."""

    field: str = Field(description="Dotted name of the field.")
    problem: str = Field(description="Description of the problem.")


class ErrorData(Wire):
    """Data of an error envelope."""

    details: list[Detail]


class ErrorEnvelope(Wire):
    """Response for every error of every route."""

    status: Literal["error"]
    data: ErrorData | None = Field(description="Problems with individual fields, if any.")
    error: str = Field(description="Error message with a suggested fix.")
    timestamp: Timestamp


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

NOT_FOUND: dict[str, type[errors.OpenRuntimeError]] = {
    "/tasks/": errors.TaskNotFound,
    "/sessions/": errors.SessionNotFound,
    "/models/": errors.ModelNotFound,
    "/ai/conversations/": errors.ConversationNotFound,
    "/arrays/": errors.ArrayNotFound,
}
"""Error for status 404 by a part of the request's path. Other paths exist on every runtime."""

ENDED = "has ended: "
"""Text of `SessionEnded.because`. Other problems of the field `session` are invalid names."""

FIELDS: dict[str, type[errors.InvalidRequest]] = {"operation": errors.UnknownOperation, "device_preference": errors.UnknownDevice}
"""Errors for invalid values of these fields."""


def status_of(error: errors.OpenRuntimeError) -> int | None:
    """Return the status of an error, or None for an unknown class."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), None)


def error_of(code: int, message: str, details: Iterable[Mapping[str, str]], retry_after: float, path: str) -> errors.OpenRuntimeError:
    """Return the error for the status `code` of a request to `path`. `retry_after` is in seconds."""
    if code == 422:
        return _invalid(message, [dict(detail) for detail in details])
    if code in (429, 503):
        kind = errors.RateLimited if code == 429 else errors.Unavailable
        return kind(message, retry_after)
    plain: dict[int, Callable[[str], errors.OpenRuntimeError]] = {
        400: errors.MalformedRequest,
        401: errors.NotAllowed,
        403: errors.NotAllowed,
        404: next((kind for part, kind in NOT_FOUND.items() if part in path), errors.NotConnected),
        409: errors.ArrayConflict if "/arrays" in path else errors.TaskConflict,
        413: errors.BodyTooLarge,
        415: errors.MalformedRequest,
    }
    return plain.get(code, errors.OpenRuntimeError)(message)


def _invalid(message: str, details: list[dict[str, str]]) -> errors.InvalidRequest:
    if any(detail.get("field") == "session" and ENDED in detail.get("problem", "") for detail in details):
        return errors.SessionEnded(message, details)
    fields = {detail.get("field") for detail in details}
    return next((FIELDS[field] for field in FIELDS if field in fields), errors.InvalidRequest)(message, details)
