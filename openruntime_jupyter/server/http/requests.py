"""Reading what a client sent: JSON bodies, queries and headers, each bounded, and each wrong value told by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from openruntime_jupyter.errors import InvalidRequest, MalformedRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.schemas.tasks import TaskOrder, TaskState

LONGEST_WAIT = 60.0
"""Seconds that a request may wait for its answer: proxies give up on longer silence."""
LONGEST_KEY = 255

Model = TypeVar("Model", bound=BaseModel)

# Only a number with one of these can be too large for a float. To look for them by a regular expression takes longer than to parse.
_ALIKE = bytes.maketrans(b"023456789E", b"111111111e")
_HUGE = (b"1e111", b"1e+111", 309 * b"1")
_PREFERENCE = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*))\s*)?(?:;[^,]*)?(?:,|$)""")


class Query(BaseModel):
    """The base of every query: what it does not know is left alone, as front ends add parameters of their own against caches."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


def _states(value: Any) -> Any:
    """`state` may be repeated, and may be a list with commas."""
    return [name.strip() for given in value for name in given.split(",")] if isinstance(value, list) else value


Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT, allow_inf_nan=False)]


class PageQuery(Query):
    """`GET /tasks/enhanced`."""

    limit: int = Field(100, ge=1, le=1000, description="How many.")
    before: str | None = Field(
        None, min_length=1, max_length=200, description="Only tasks older than the task of this id: `next_before` of the page before."
    )
    offset: int = Field(0, ge=0, le=2**53, description="How many to leave out first; slower than `before` for large figures.")


class TasksQuery(PageQuery):
    """`GET /tasks`."""

    state: Annotated[list[TaskState], BeforeValidator(_states)] | None = Field(
        None, max_length=20, description="Only tasks in this state; may be given several times, or as a list with commas."
    )
    operation: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this operation.")
    owner: str | None = Field(None, min_length=1, max_length=200, description="Only tasks of this user.")
    order: TaskOrder = Field(
        "newest", description="`newest` first, or what waits with the `next` to run first: that goes with `limit` and `offset` alone."
    )


class WaitQuery(Query):
    """How many seconds to wait for what is asked for."""

    wait: Wait = Field(0.0, description="Seconds to wait for it.")


class TaskQuery(WaitQuery):
    """`GET /tasks/{id}`: also whether its parameters are wanted, which may be megabytes."""

    parameters: bool = Field(True, description="Whether its parameters are wanted.")


class OutputQuery(WaitQuery):
    """`GET /tasks/{id}/output`: from where on, and how many seconds to wait for something new."""

    since: int = Field(0, ge=0, le=2**53, description="Leave out what came before: `next` of the answer before.")
    record: bool = Field(False, description="true: add the task's record, without parameters, as `task`.")


class TokensQuery(Query):
    """`GET /tasks/{id}/tokens`."""

    since: int = Field(0, ge=0, le=2**53, description="Leave out so many characters (code points).")


class ConversationsQuery(Query):
    """`/ai/conversations`."""

    owner: str | None = Field(None, min_length=1, max_length=200, description="Of this user.")


class DeleteQuery(Query):
    """`DELETE /tasks/{id}`."""

    purge: bool = Field(False, description="Erase the task, which must have ended, with its output and results.")


class SinceQuery(Query):
    """`WS /ws`."""

    since: int | None = Field(None, ge=0, le=2**53, description="The id of the last message that was got: tell again what came after it.")


@dataclass(frozen=True)
class Preference:
    """What the `Prefer` header of RFC 7240 asks for; `wait` is in seconds."""

    respond_async: bool = False
    wait: float | None = None

    @property
    def applied(self) -> str | None:
        """The value of `Preference-Applied`; None where nothing was preferred."""
        if self.wait is not None:
            return f"wait={self.wait:g}"
        return "respond-async" if self.respond_async else None


NO_PREFERENCE = Preference()


def read_json(model: type[Model], body: bytes | bytearray, content_type: str | None, encoding: str | None = None) -> Model:
    """`body` as a `model`.

    Raises `MalformedRequest` for what is no JSON, and `InvalidRequest`, which lists every wrong field, for JSON of the wrong
    shape. Only `application/json` is taken: no form of a foreign web page can send that without being asked first. Of a key that
    is given twice the last value counts.
    """
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise MalformedRequest(f"The body's content type is {kind or 'missing'}: send JSON, with `Content-Type: application/json`")
    if (encoding or "identity").strip().lower() != "identity":
        raise MalformedRequest(f"The body is compressed ({encoding}): send it as it is")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as problem:
        raise MalformedRequest(f"The body is no valid JSON: {problem}") from None
    alike = body.translate(_ALIKE)
    if any(huge in alike for huge in _HUGE) and any(number in (math.inf, -math.inf) for number in _numbers(value)):
        raise MalformedRequest("The body has a number that is too large for a 64-bit float")
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        raise invalid(problem, known=model.model_fields) from None


def _numbers(value: Any) -> Iterator[float]:
    """Every float in `value`; without recursion, as it may be nested deeply."""
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
    """The query as a `model`; of a parameter that is repeated the last value counts, where the model wants one.

    Raises `InvalidRequest` that names each wrong parameter.
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
    """The `Prefer` headers. As RFC 7240 wants it, what is not understood is ignored, and of repeated ones the first counts."""
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
    """The `Idempotency-Key`; None where there is none. Raises `InvalidRequest` for one that is empty, too long, or not printable."""
    if header is None:
        return None
    if not (1 <= len(header) <= LONGEST_KEY and header.isascii() and header.isprintable()):
        raise InvalidRequest.of("Idempotency-Key", f"must be 1 to {LONGEST_KEY} printable ASCII characters")
    return header
