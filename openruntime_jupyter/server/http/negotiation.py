"""Content negotiation: selection of a media type by the `Accept` header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

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
