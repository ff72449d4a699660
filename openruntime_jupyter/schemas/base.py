"""Base of the wire types, and timestamps."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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


class Wire(BaseModel):
    """Base class of the wire types."""

    model_config = ConfigDict(extra="forbid", defer_build=True)
