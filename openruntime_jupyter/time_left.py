"""Estimate of the remaining time of work that reports its progress.

An unknown time is None. The views then show no time, which is better than a wrong one.
"""

from __future__ import annotations

FIRST_SECONDS = 2.0
FIRST_SHARE = 0.03
"""Progress that an estimate needs: this many seconds or this share of the total since the first report."""


class TimeLeft:
    """Remaining time of a task by its progress reports. A new total, or less work done than before, begins a new count."""

    def __init__(self) -> None:
        self._total: float | None = None
        self._last = 0.0
        self._first = 0.0
        self._begun = 0.0

    def report(self, n: float, total: float | None, now: float) -> float | None:
        """Return the remaining seconds after the report that `n` of `total` was done at `now`, in seconds; None if unknown."""
        if not total or n > total:
            self._total = None
            return None
        if total != self._total or n < self._last:
            self._total, self._first, self._begun = total, n, now
        self._last = n
        if n == total:
            return 0.0
        done, seconds = n - self._first, now - self._begun
        if done <= 0 or (seconds < FIRST_SECONDS and done < FIRST_SHARE * total):
            return None
        return seconds / done * (total - n)
