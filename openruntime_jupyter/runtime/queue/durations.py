"""Usual durations of tasks, for the estimated start of those behind them."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Hashable

RECENT = 20
"""Durations kept for each kind."""
KINDS = 500
"""Kinds kept; the least recently used is dropped."""


class Durations:
    """Recent durations of completed tasks, in seconds, by kind."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def add(self, kind: Hashable, seconds: float) -> None:
        """Add the duration of a task."""
        self._of.setdefault(kind, deque(maxlen=RECENT)).append(seconds)
        self._of.move_to_end(kind)
        if len(self._of) > KINDS:
            self._of.popitem(last=False)

    def typical(self, kind: Hashable) -> float | None:
        """Return the median duration; None before the first task of this kind has completed."""
        return self.left(kind, 0.0)

    def left(self, kind: Hashable, elapsed: float) -> float | None:
        """Return the remaining seconds of a task that has run for `elapsed` seconds, by the durations that are longer."""
        known = sorted(self._of.get(kind, ()))
        longer = bisect_right(known, elapsed)
        return None if longer == len(known) else known[(longer + len(known)) // 2] - elapsed
