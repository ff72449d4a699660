"""Which of several media types a client likes best, by its `Accept` header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

LONGEST = 2_000
"""Characters of the header that are looked at."""

_RANGE = re.compile(r"([!#$&^_.+*\w-]+)/([!#$&^_.+*\w-]+)$")
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)$")


def preferred(header: str | None, offers: Sequence[str]) -> str:
    """The offer of the highest quality, of equal ones the first; the first too where the header takes none, or is not there.

    As RFC 9110 wants it, the most specific range that fits an offer tells its quality. Parameters of media types, such as a
    version, are not looked at; a range that can't be understood is as if it were not there.
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
    for wanted in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0
