"""Base of the wire types, JSON, and timestamps."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import cache, lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError, from_json, to_json

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""UTC, ISO 8601, ending in `Z`."""


Priority = Annotated[int, Field(ge=1, le=10, strict=True)]
"""1 to 10; 10 is the most urgent."""


@lru_cache(maxsize=256)  # the same time is formatted several times: in records, rows and events of a task
def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as a `Timestamp`."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_to_the_second(whole)}.{micros:06d}Z"


@lru_cache(maxsize=64)  # most timestamps are from the last seconds
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).isoformat()


def iso(seconds: float | None) -> str | None:
    """Format seconds since the epoch as a `Timestamp`; return None for None."""
    return None if seconds is None else timestamp(seconds)


def epoch(timestamp: str | None) -> float | None:
    """Convert a `Timestamp` to seconds since the epoch: the inverse of `iso`."""
    return None if timestamp is None else datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def dumps(body: dict[str, Any]) -> bytes:
    """Encode as JSON, several times faster than `json`."""
    try:
        return to_json(body)
    except ValueError:  # folder names may be invalid UTF-8
        return json.dumps(body).encode()


def loads(body: bytes | bytearray) -> Any:
    """Decode JSON."""
    try:
        return from_json(body)
    except ValueError:  # it rejects more than 200 levels of nesting
        return json.loads(body)


def _never_null(schema: dict[str, Any]) -> None:
    """Adapt the schema of a field that is omitted if it is None."""
    schema.pop("default", None)
    if "anyOf" in schema:
        schema.update(schema.pop("anyOf")[0])
    elif isinstance(schema.get("type"), list):
        schema["type"] = schema["type"][0]


def absent(description: str) -> Any:
    """Return a field that is omitted from responses if it is None."""
    return Field(None, description=description, exclude_if=lambda value: value is None, json_schema_extra=_never_null)


def wrong(problem: str) -> PydanticCustomError:
    """Return a validation error with the text `problem`, without pydantic's prefix "Value error"."""
    return PydanticCustomError("wrong", "{problem}", {"problem": problem})  # as context, because the template would interpret braces


class Wire(BaseModel):
    """Base class of the wire types."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


Model = TypeVar("Model", bound=Wire)


def construct_unchecked(kind: type[Model], fields: dict[str, Any]) -> Model:
    """Return a `kind` with these fields, all of which must be given and valid.

    Two or three records are made of every task. Validating them would take 15 µs more a task in the benchmark's row "runtime: empty tasks,
    states, events and history on".
    """
    made = kind.__new__(kind)
    put = object.__setattr__
    put(made, "__dict__", fields)
    put(made, "__pydantic_fields_set__", _names(kind))
    put(made, "__pydantic_extra__", None)
    put(made, "__pydantic_private__", None)
    return made


@cache  # one set per type
def _names(kind: type[Wire]) -> set[str]:
    return set(kind.model_fields)
