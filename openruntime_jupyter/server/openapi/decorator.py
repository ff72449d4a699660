"""Decorator that attaches an API description to a handler method; `document.py` generates the OpenAPI document from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from openruntime_jupyter.server.http.requests import Query

Verb = TypeVar("Verb", bound=Callable[..., Any])

ATTRIBUTE = "__described__"

JSON = "application/json"

TextType = Literal["text/plain", "application/openmetrics-text"]

VERSIONS: dict[TextType, str] = {"text/plain": "0.0.4", "application/openmetrics-text": "1.0.0"}
"""Formats that Prometheus supports, with their versions."""


@dataclass(frozen=True)
class Parameter:
    """Header of a request or a response."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Response:
    """Successful response: JSON of `model`, other media types, or both, depending on the request's `Accept` header."""

    model: type[BaseModel] | None = None
    description: str = "Done."
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Schemas of media types other than the model's JSON."""
    headers: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Description:
    """Requests and responses of a handler method. The first paragraph of the method's docstring is the summary."""

    responses: Mapping[int, Response]
    tag: str
    query: type[Query] | None = None
    body: type[BaseModel] | None = None
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Schemas of media types of the body other than JSON."""
    headers: tuple[Parameter, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    """Errors in addition to those of every method: status and reason."""
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Example bodies by title."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Extension fields, which begin with `x-`."""


def described(
    tag: str, responses: type[BaseModel] | Response | Mapping[int, type[BaseModel] | Response], **options: Any
) -> Callable[[Verb], Verb]:
    """Return a decorator that attaches a `Description` with the fields `options` to a handler method.

    `responses` without a status are for status 200.
    """
    by_status = responses if isinstance(responses, Mapping) else {200: responses}
    made = {status: response if isinstance(response, Response) else Response(response) for status, response in by_status.items()}
    description = Description(made, tag, **options)

    def attach(verb: Verb) -> Verb:
        setattr(verb, ATTRIBUTE, description)
        return verb

    return attach


def description_of(handler: type, verb: str) -> Description | None:
    """Return the description that `described` attached, or None."""
    found: Description | None = getattr(getattr(handler, verb.lower()), ATTRIBUTE, None)
    return found


BYTES: Mapping[str, Any] = {"type": "string", "format": "binary"}

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "Key that makes retries safe: a repeated request with the same key by the same user within a day creates nothing and returns the "
    "result of the first request. The same key with a different body returns 422.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)

KEY_IN_USE = "Another server of this user is processing a request with this `Idempotency-Key`; retry."
