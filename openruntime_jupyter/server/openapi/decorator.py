"""What a handler's verb says of itself beside its code: `server/openapi/document.py` makes the description of the API from it."""

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
"""The formats that Prometheus reads."""


@dataclass(frozen=True)
class Parameter:
    """A header of a request or an answer."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Answer:
    """An answer that is no error: JSON of `model`, text or bytes of other media types, or both by the request's `Accept`."""

    model: type[BaseModel] | None = None
    description: str = "Done."
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Media type -> schema, beside the model's JSON."""
    headers: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a verb takes and gives. Its docstring says what it does: the first sentence is the summary."""

    answers: Mapping[int, Answer]
    tag: str
    query: type[Query] | None = None
    body: type[BaseModel] | None = None
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Media types of the body that are not JSON -> schema."""
    headers: tuple[Parameter, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    """Statuses beyond those that every verb may answer, and when."""
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Bodies, by what they show."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What OpenAPI has no words for: fields that begin with `x-`."""


def described(tag: str, answers: type[BaseModel] | Answer | Mapping[int, type[BaseModel] | Answer], **said: Any) -> Callable[[Verb], Verb]:
    """Attach a `Description` (its fields are the keywords) to a handler's verb; `answers` without a status are for 200."""
    given = answers if isinstance(answers, Mapping) else {200: answers}
    made = {status: answer if isinstance(answer, Answer) else Answer(answer) for status, answer in given.items()}
    description = Description(made, tag, **said)

    def attach(verb: Verb) -> Verb:
        setattr(verb, ATTRIBUTE, description)
        return verb

    return attach


def description_of(handler: type, verb: str) -> Description | None:
    """What `described` attached; None where nothing was."""
    found: Description | None = getattr(getattr(handler, verb.lower()), ATTRIBUTE, None)
    return found


BYTES: Mapping[str, Any] = {"type": "string", "format": "binary"}

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "A request that is sent again with the same key by the same user within a day makes nothing twice: it is answered with what it "
    "made the first time. The same key with another body is 422.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)

KEY_IN_USE = "Another server of this user is just taking a request with this `Idempotency-Key`: send it again."
