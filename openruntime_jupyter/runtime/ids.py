"""Ids that sort by time, even within one millisecond of one process.

They are ULIDs in lower case with 50 random bits: the six digits of the other 30 bits, which are always zero, are left out.
"""

from __future__ import annotations

import secrets
import threading
import time

from ulid import ULID

TIME_DIGITS = 10
RANDOM_BITS = 50
_ZEROS = "0" * 6
"""Digits that a ULID has between its time and the last `RANDOM_BITS` bits."""


def _text(number: int) -> str:
    digits = str(ULID.from_int(number)).lower()
    return digits[:TIME_DIGITS] + digits[TIME_DIGITS + len(_ZEROS) :]


class IdMaker:
    """Generator of ids. Unlike ULIDs of the library, they increase when the clock is set back, and can be made in runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def make(self, prefix: str) -> str:
        """Return a new id such as `task_01kq…` that sorts after all earlier ones."""
        return self.make_many(prefix, 1)[0]

    def make_many(self, prefix: str, number: int) -> list[str]:
        """Return `number` consecutive new ids of one millisecond; `neighbour` computes one from another."""
        with self._lock:
            first = max(self._last + 1, (time.time_ns() // 1_000_000 << 80) + secrets.randbits(RANDOM_BITS - 1))
            self._last = first + number - 1
        return [f"{prefix}_{_text(first + step)}" for step in range(number)]


def neighbour(known: str, steps: int) -> str:
    """Return the id `steps` after `known` (before it if negative) among ids that were made together."""
    prefix, _, digits = known.rpartition("_")
    number = int(ULID.from_str(digits[:TIME_DIGITS] + _ZEROS + digits[TIME_DIGITS:]))
    return f"{prefix}_{_text(number + steps)}"


_maker = IdMaker()
make_id = _maker.make
make_ids = _maker.make_many
