"""Validation of JSON bodies, queries and headers, with size limits. Errors name each invalid field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from openruntime_jupyter.errors import BodyTooLarge, InvalidRequest, MalformedRequest
from openruntime_jupyter.operations.base import validated
from openruntime_jupyter.runtime.large import LARGE
from openruntime_jupyter.schemas.queries import LONGEST_WAIT, Query

LONGEST_KEY = 255

Model = TypeVar("Model", bound=BaseModel)
QueryModel = TypeVar("QueryModel", bound=Query)

MOST_VALUES = 150_000
"""Maximum number of values and keys in a JSON body: parsing or validating more of them would hold the interpreter's lock for over 50 ms."""
ESCAPES = 15
"""Number of escapes in strings that take as long to parse as a value."""
LONG_NUMBER = 20
"""Number of values that take as long to parse and encode as 100 digits of a number: an integer takes quadratic time."""
PIECE = 65_536

_HUNDRED_DIGITS = 100 * b"1"
# Only a number that contains one of these can exceed a float. A regular expression would take longer than parsing.
_ALIKE = bytes.maketrans(b"023456789E", b"111111111e")
_HUGE = (b"1e111", b"1e+111", 200 * b"1")
_PREFERENCE = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*))\s*)?(?:;[^,]*)?(?:,|$)""")


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
    """Return `body` as a `model`. Call it in the thread of `runtime/large.py` for a large body.

    Raises `MalformedRequest` for invalid JSON, `BodyTooLarge` for too many values, and `InvalidRequest` with the invalid fields for JSON
    that does not match the model. Only `application/json` is accepted, because pages of other origins cannot send it without a preflight
    request. If a key is repeated, the last value counts.
    """
    media_type = (content_type or "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise MalformedRequest(f"The body's content type is {media_type or 'missing'}: send JSON, with `Content-Type: application/json`")
    if (encoding or "identity").strip().lower() != "identity":
        raise MalformedRequest(f"The body is compressed ({encoding}): send it uncompressed")
    count, infinite = _survey(body) if len(body) > LARGE else (0, _may_be_infinite(body))
    if count > MOST_VALUES:
        raise BodyTooLarge(
            f"The body has about {count:,} JSON values and keys, and the most is {MOST_VALUES:,}: upload large arrays with PUT /arrays/ID, "
            "or send fewer tasks in one request"
        )
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as problem:
        raise MalformedRequest(f"The body is not valid JSON: {problem}") from None
    if infinite and any(number in (math.inf, -math.inf) for number in _numbers(value)):
        raise MalformedRequest("The body contains a number that is too large for a 64-bit float")
    return validated(model, value)


def _may_be_infinite(body: bytes | bytearray) -> bool:
    alike = body.translate(_ALIKE)
    return any(huge in alike for huge in _HUGE)


def _survey(body: bytes | bytearray) -> tuple[int, bool]:
    """Return the number of values in a JSON body, and whether a number in it may exceed a float.

    The number is that of commas, colons and opening brackets outside of strings, because a key takes as long as a value, plus an
    equivalent for escapes in strings and for long numbers.
    """
    count, infinite = body.count(b"\\") // ESCAPES, False
    for outside in _outside_strings(body):
        count += sum(map(outside.count, (b",", b":", b"[", b"{")))
        count += LONG_NUMBER * outside.translate(_ALIKE).count(_HUNDRED_DIGITS)
        infinite = infinite or _may_be_infinite(outside)
    return count, infinite


def _outside_strings(body: bytes | bytearray) -> Iterator[bytes]:
    """Yield the parts of a JSON body outside of strings, those of one piece joined."""
    start = 0
    in_string = False
    while start < len(body):
        end = body.find(b",", start + PIECE) + 1 or len(body)  # a comma is never part of an escape or a number
        piece = body[start:end]
        start = end
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        yield b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0


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


def read_query(model: type[QueryModel], given: dict[str, list[str]]) -> QueryModel:
    """Return the query as a `model`. If a single-valued parameter is repeated, the last value counts.

    Raises `InvalidRequest` with all invalid parameters.
    """
    values: dict[str, Any] = {}
    for name in model.model_fields:
        if given.get(name):
            values[name] = given[name] if name in model.repeatable else given[name][-1]
    return validated(model, values)


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
