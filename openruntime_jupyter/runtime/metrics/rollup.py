"""Measurements, folded into tiers of ever longer buckets. Pure: it has no clock and no file.

Buckets are of the wall clock, in whole seconds since the epoch, so daylight saving does not touch them. How long something lasted
is told by a monotonic clock. So a wall clock that is set back merges two stretches of time in the same buckets, where each still
weighs what it lasted, and one that is set forward leaves a gap; neither counts anything twice or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """Buckets of so many `seconds`, kept for `keep` seconds."""

    seconds: int
    keep: int

    @property
    def most(self) -> int:
        """Buckets that are kept: a minute more, so that a question about all of `keep` never finds the first ones gone."""
        return self.keep // self.seconds + max(1, 60 // self.seconds)


TIERS = (Tier(1, 900), Tier(10, 6 * 3600), Tier(60, 24 * 3600), Tier(300, 7 * 24 * 3600))
"""Finest first; each bucket of a tier is made of whole buckets of the one before."""

SLACK_SECONDS = 5.0
"""How much older than `keep` a question may be, for the time it takes to ask it."""


@dataclass(slots=True)
class Spread:
    """Values with weights: seconds that each lasted, or 1 for each of those that have no duration."""

    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """One more value."""
        # Not min() and max(): this is done several times a task, and they cost three times as much.
        if value < self.low:  # noqa: PLR1730
            self.low = value
        if value > self.high:  # noqa: PLR1730
            self.high = value
        self.total += value * weight
        self.weight += weight

    def merge(self, other: Spread) -> None:
        """All the other's values too."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total
        self.weight += other.weight


@dataclass(slots=True)
class Bucket:
    """What was measured within a bucket, by figure; the first and the last moment of it that were looked at."""

    began: float
    ended: float
    spreads: dict[str, Spread] = field(default_factory=dict)

    def spread(self, figure: str) -> Spread:
        """The figure's values, to be added to."""
        found = self.spreads.get(figure)
        if found is None:
            found = self.spreads[figure] = Spread()
        return found

    def widen(self, began: float, ended: float) -> None:
        """That stretch was looked at too."""
        self.began = min(self.began, began)
        self.ended = max(self.ended, ended)

    def merge(self, other: Bucket) -> None:
        """All that the other has too."""
        self.widen(other.began, other.ended)
        for figure, spread in other.spreads.items():
            self.spread(figure).merge(spread)


Buckets = dict[tuple[int, int], Bucket]
"""By the seconds of their tier and the second at which they start."""


class Ledger:
    """What was measured since the last `take`, by second of the wall clock.

    Nothing is taken to have lasted for more than `longest` seconds: what was not looked at for longer than that is a gap.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._seconds: dict[int, Bucket] = {}

    def lasted(self, values: Mapping[str, float], end: float, seconds: float) -> None:
        """The figures had these values for so many `seconds` until `end`, a time since the epoch."""
        begin = end - min(seconds, self._longest)
        for second in range(math.floor(begin), math.ceil(end)):
            first, last = max(begin, second), min(end, second + 1)
            if last <= first:
                continue
            bucket = self._bucket(second, first, last)
            for figure, value in values.items():
                bucket.spread(figure).add(value, last - first)

    def varied(self, spreads: Mapping[str, Spread], second: int, began: float, ended: float) -> None:
        """Within one second, from `began` to `ended`, the figures varied like this."""
        bucket = self._bucket(second, began, ended)
        for figure, spread in spreads.items():
            bucket.spread(figure).merge(spread)

    def happened(self, values: Mapping[str, float], at: float) -> None:
        """The figures had these values once, at that time since the epoch."""
        second = int(at)
        bucket = self._seconds.get(second) or self._bucket(second, at, at)
        for figure, value in values.items():
            (bucket.spreads.get(figure) or bucket.spread(figure)).add(value)

    def take(self) -> Buckets:
        """All of it in the buckets of every tier, to be added to those of earlier; begins anew."""
        seconds, self._seconds = self._seconds, {}
        folded: Buckets = {}
        for second, bucket in seconds.items():
            for tier in TIERS:
                key = tier.seconds, second - second % tier.seconds
                found = folded.get(key)
                if found is None:
                    found = folded[key] = Bucket(bucket.began, bucket.ended)
                found.merge(bucket)
        return folded

    def _bucket(self, second: int, began: float, ended: float) -> Bucket:
        bucket = self._seconds.get(second)
        if bucket is None:
            bucket = self._seconds[second] = Bucket(began, ended)
        else:
            bucket.widen(began, ended)
        return bucket


def add_to(buckets: Buckets, more: Buckets) -> None:
    """Merge `more`, which must not be used after that, into `buckets`."""
    for key, bucket in more.items():
        found = buckets.get(key)
        if found is None:
            buckets[key] = bucket
        else:
            found.merge(bucket)


def bound(buckets: Buckets, now: float) -> None:
    """Drop those that are beyond what a tier keeps, the farthest from `now` first."""
    for tier in TIERS:
        mine = [key for key in buckets if key[0] == tier.seconds]
        if len(mine) > tier.most:
            mine.sort(key=lambda key: abs(key[1] - now))
            for key in mine[tier.most :]:
                del buckets[key]


@dataclass(frozen=True, slots=True)
class Window:
    """What to read for an answer: from `tier`, points of `step` seconds, the first at `first`, `count` of them."""

    tier: Tier
    first: int
    step: int
    count: int

    @property
    def last(self) -> int:
        """The end of the last point."""
        return self.first + self.count * self.step

    @property
    def starts(self) -> range:
        """When each point starts, in seconds since the epoch."""
        return range(self.first, self.last, self.step)


def window(start: float, end: float, points: int, now: float) -> Window:
    """How to answer about the time from `start` to `end`, in at most `points` points, which lie on multiples of their length.

    Of the tiers that reach back to `start`, the one that gives the most points; of several the coarsest, which costs least. A point
    that begins before `start` is left out, the one that `end` lies in is not. Raises ValueError where `end` is not after `start`.
    """
    if not start < end or points < 1:
        raise ValueError(f"no points between {start} and {end}")
    reaching = [tier for tier in TIERS if now - start <= tier.keep + SLACK_SECONDS] or [TIERS[-1]]
    wanted = (end - start) / points
    step, tier = min(((_step(wanted, tier), tier) for tier in reaching), key=lambda found: (found[0], -found[1].seconds))
    first = math.ceil(start / step) * step
    return Window(tier, first, step, max(0, math.ceil(end / step) - first // step))


def _step(wanted: float, tier: Tier) -> int:
    """The length of a point that is made of whole buckets, and no shorter than is wanted."""
    return tier.seconds * max(1, math.ceil(wanted / tier.seconds - 1e-9))
