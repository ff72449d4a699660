"""Validation of JSON bodies, queries and headers, with size limits. Errors name each invalid field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from openruntime_jupyter.errors import InvalidRequest, MalformedRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.schemas.tasks import TaskOrder, TaskState

LONGEST_WAIT = 60.0
"""Maximum wait of a request in seconds. Many proxies close connections that are idle for longer."""
LONGEST_KEY = 255

Model = TypeVar("Model", bound=BaseModel)

# Only a number that contains one of these can exceed a float. A regular expression would take longer than parsing.
_ALIKE = bytes.maketrans(b"023456789E", b"111111111e")
_HUGE = (b"1e111", b"1e+111", 309 * b"1")
_PREFERENCE = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*))\s*)?(?:;[^,]*)?(?:,|$)""")


class Query(BaseModel):
    """Base class of queries. Unknown parameters are ignored, because front ends add their own to bypass caches."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


def _states(value: Any) -> Any:
    """Split repeated and comma-separated values of `state`."""
    return [name.strip() for given in value for name in given.split(",")] if isinstance(value, list) else value


Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)]


class PageQuery(Query):
    """Query of `GET /tasks/enhanced`."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of tasks.")
    before: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Only tasks older than the task with this id. Use `next_before` of the previous page.",
    )
    offset: int = Field(0, ge=0, le=2**53, description="Number of tasks to skip; slower than `before` for large numbers.")


class TasksQuery(PageQuery):
    """Query of `GET /tasks`."""

    state: Annotated[list[TaskState], BeforeValidator(_states)] | None = Field(
        None, max_length=20, description="Only tasks in this state. Can be repeated or comma-separated."
    )
    operation: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this operation.")
    owner: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this user.")
    order: TaskOrder = Field(
        "newest", description="`newest`: newest tasks first. `next`: pending tasks, next to run first; only with `limit` and `offset`."
    )


class WaitQuery(Query):
    """Query with a maximum wait."""

    wait: Wait = Field(0.0, description="Maximum wait in seconds.")


class TaskQuery(WaitQuery):
    """Query of `GET /tasks/{id}`."""

    parameters: bool = Field(True, description="false: omit the parameters of the task, which can be large.")


class OutputQuery(WaitQuery):
    """Query of `GET /tasks/{id}/output`."""

    since: int = Field(0, ge=0, le=2**53, description="Only output after this position. Use `next` of the previous response.")
    record: bool = Field(False, description="true: include the record of the task without parameters as `task`.")


class TokensQuery(Query):
    """Query of `GET /tasks/{id}/tokens`."""

    since: int = Field(0, ge=0, le=2**53, description="Number of characters (code points) to skip.")


class ConversationsQuery(Query):
    """Query of `/ai/conversations`."""

    owner: str | None = Field(None, min_length=1, max_length=200, description="Owner of the conversations.")


class DeleteQuery(Query):
    """Query of `DELETE /tasks/{id}`."""

    purge: bool = Field(False, description="true: delete the finished task with its output and results.")


class SinceQuery(Query):
    """Query of `WS /ws`."""

    since: int | None = Field(None, ge=0, le=2**53, description="Id of the last received message; newer messages are sent again.")


@dataclass(frozen=True)
class Preference:
    """Preferences of the `Prefer` header (RFC 7240); `wait` is in seconds."""

    respond_async: bool = False
    wait: float | None = None

    @property
    def applied(self) -> str | None:
        """Return the value of `Preference-Applied`; None without a preference."""
        if self.wait is not None:
            return f"wait={self.wait:g}"
        return "respond-async" if self.respond_async else None


NO_PREFERENCE = Preference()


def read_json(model: type[Model], body: bytes | bytearray, content_type: str | None, encoding: str | None = None) -> Model:
    """Return `body` as a `model`.

    Raises `MalformedRequest` for invalid JSON, and `InvalidRequest` with all invalid fields for JSON that does not match the model.
    Only `application/json` is accepted, because pages of other origins cannot send it without a preflight request. If a key is
    repeated, the last value counts.
    """
    media_type = (content_type or "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise MalformedRequest(f"The body's content type is {media_type or 'missing'}: send JSON, with `Content-Type: application/json`")
    if (encoding or "identity").strip().lower() != "identity":
        raise MalformedRequest(f"The body is compressed ({encoding}): send it uncompressed")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as problem:
        raise MalformedRequest(f"The body is not valid JSON: {problem}") from None
    alike = body.translate(_ALIKE)
    if any(huge in alike for huge in _HUGE) and any(number in (math.inf, -math.inf) for number in _numbers(value)):
        raise MalformedRequest("The body contains a number that is too large for a 64-bit float")
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        raise invalid(problem, known=model.model_fields) from None


def _numbers(value: Any) -> Iterator[float]:
    """Yield every float in `value`, without recursion because it may be deeply nested."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, float):
            yield item


def read_query(model: type[Model], given: dict[str, list[str]]) -> Model:
    """Return the query as a `model`. If a single-valued parameter is repeated, the last value counts.

    Raises `InvalidRequest` with all invalid parameters.
    """
    values: dict[str, Any] = {}
    for name in model.model_fields:
        if given.get(name):
            values[name] = given[name] if name == "state" else given[name][-1]
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        raise invalid(problem, known=model.model_fields) from None


def read_preference(headers: Sequence[str]) -> Preference:
    """Parse the `Prefer` headers. According to RFC 7240, unknown preferences are ignored and the first of repeated ones counts."""
    if not headers:
        return NO_PREFERENCE
    found: dict[str, str] = {}
    for header in headers:
        for match in _PREFERENCE.finditer(header[:1000]):
            name, quoted, plain = match.groups()
            found.setdefault(name.lower(), quoted or plain or "")
    wait = None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", found.get("wait", "")):
        wait = min(float(found["wait"]), LONGEST_WAIT)
    return Preference("respond-async" in found, wait)


def read_key(header: str | None) -> str | None:
    """Return the `Idempotency-Key` or None; raises `InvalidRequest` for a key that is empty, too long, or not printable ASCII."""
    if header is None:
        return None
    if not (1 <= len(header) <= LONGEST_KEY and header.isascii() and header.isprintable()):
        raise InvalidRequest.of("Idempotency-Key", f"must be 1 to {LONGEST_KEY} printable ASCII characters")
    return header


LONGEST = 2_000
"""Maximum length of the evaluated header in characters."""

_RANGE = re.compile(r"([!#$&^_.+*\w-]+)/([!#$&^_.+*\w-]+)$")
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$")


def preferred(header: str | None, offers: Sequence[str]) -> str:
    """Return the offer with the highest quality. Return the first offer if several are equal, if none is accepted, or without a header.

    According to RFC 9110, the most specific matching range determines the quality of an offer. Parameters of media types, such as a
    version, are ignored, and so are invalid ranges.
    """
    return offers[0] if header is None else _preferred(header[:LONGEST], tuple(offers))


@lru_cache(maxsize=64)
def _preferred(header: str, offers: tuple[str, ...]) -> str:
    ranges = list(_ranges(header))
    return max(offers, key=lambda offer: _quality(offer, ranges))


def _ranges(header: str) -> Iterator[tuple[str, float]]:
    for given in header.lower().split(","):
        name, *parameters = (part.strip() for part in given.split(";"))
        quality = next((value.strip() for key, _, value in (part.partition("=") for part in parameters) if key.strip() == "q"), "1")
        if _RANGE.match(name) and _QUALITY.match(quality):
            yield name, float(quality)


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    for pattern in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        qualities = [quality for name, quality in ranges if name == pattern]
        if qualities:
            return max(qualities)
    return 0.0
