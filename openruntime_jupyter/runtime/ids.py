"""Ids that sort by time, even within one millisecond of one process."""

from __future__ import annotations

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: it sorts like the numbers, and no two letters look alike."""

RANDOM_DIGITS = 10
"""The same number of digits as the time."""
RANDOM_BITS = 5 * RANDOM_DIGITS


_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]


def _text(number: int) -> str:
    """Return the last ten digits of a number."""
    pairs = _PAIRS
    return (
        pairs[number >> 40 & 1023]
        + pairs[number >> 30 & 1023]
        + pairs[number >> 20 & 1023]
        + pairs[number >> 10 & 1023]
        + pairs[number & 1023]
    )


class IdMaker:
    """Generator of ids with 48 bits of milliseconds and 50 random bits, which are incremented within a millisecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millisecond = 0
        self._random = 0
        self._prefix = ""

    def make(self, prefix: str) -> str:
        """Return a new id such as `task_01kq…` that sorts after all earlier ones."""
        with self._lock:
            now = max(time.time_ns() // 1_000_000, self._millisecond)
            if now != self._millisecond or self._random + 1 >= 1 << RANDOM_BITS:
                self._millisecond = now if now != self._millisecond else now + 1
                self._random = secrets.randbits(RANDOM_BITS - 1)
                self._prefix = _text(self._millisecond)
            else:
                self._random += 1
            return f"{prefix}_{self._prefix}{_text(self._random)}"

    def make_many(self, prefix: str, number: int) -> list[str]:
        """Return `number` consecutive new ids of one millisecond; `neighbour` computes one from another."""
        with self._lock:
            self._millisecond = max(time.time_ns() // 1_000_000, self._millisecond + 1)
            first = secrets.randbits(RANDOM_BITS - 1)
            self._random = first + number
            self._prefix = _text(self._millisecond)
            return [f"{prefix}_{self._prefix}{_text(first + step)}" for step in range(number)]


def neighbour(known: str, steps: int) -> str:
    """Return the id `steps` after `known` (before it if negative) among ids that were made together."""
    number = 0
    for letter in known[-RANDOM_DIGITS:]:
        number = number * 32 + ALPHABET.index(letter)
    return known[:-RANDOM_DIGITS] + _text(number + steps)


_maker = IdMaker()
make_id = _maker.make
make_ids = _maker.make_many
