"""Rollup of measurements into tiers of increasingly long buckets. The code uses no clock and no file.

Buckets start at whole seconds since the epoch by the wall clock, so daylight saving has no effect. Durations come from a monotonic
clock. If the wall clock is set back, two time ranges share buckets and each keeps its weight; if it is set forward, a gap is left. In
both cases every measurement counts exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """Tier of buckets that are `seconds` long and kept for `keep` seconds."""

    seconds: int
    keep: int

    @property
    def most(self) -> int:
        """Maximum number of kept buckets: one minute more than `keep`, so that a query over all of `keep` finds every bucket."""
        return self.keep // self.seconds + max(1, 60 // self.seconds)


TIERS = (Tier(1, 900), Tier(10, 6 * 3600), Tier(60, 24 * 3600), Tier(300, 7 * 24 * 3600))
"""Finest first; each bucket of a tier consists of whole buckets of the tier before."""

SLACK_SECONDS = 5.0
"""Seconds by which the start of a query may exceed `keep`, to allow for its latency."""


@dataclass(slots=True)
class Spread:
    """Minimum, maximum and weighted total of values; the weight is a duration in seconds, or 1 for values without a duration."""

    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Add a value."""
        # Not min() and max(), which cost three times as much: this runs several times per task.
        if value < self.low:  # noqa: PLR1730
            self.low = value
        if value > self.high:  # noqa: PLR1730
            self.high = value
        self.total += value * weight
        self.weight += weight

    def merge(self, other: Spread) -> None:
        """Add the values of `other`."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total
        self.weight += other.weight


@dataclass(slots=True)
class Bucket:
    """Values of one bucket by metric name, with the first and the last measured moment."""

    began: float
    ended: float
    spreads: dict[str, Spread] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Return the spread of a metric, created if missing."""
        found = self.spreads.get(name)
        if found is None:
            found = self.spreads[name] = Spread()
        return found

    def widen(self, began: float, ended: float) -> None:
        """Extend the measured range."""
        self.began = min(self.began, began)
        self.ended = max(self.ended, ended)

    def merge(self, other: Bucket) -> None:
        """Add the values and the measured range of `other`."""
        self.widen(other.began, other.ended)
        for name, spread in other.spreads.items():
            self.spread(name).merge(spread)


Buckets = dict[tuple[int, int], Bucket]
"""Buckets by (seconds of their tier, start in seconds since the epoch)."""


class Ledger:
    """Measurements since the last `take`, by second of the wall clock.

    A value is assumed to last at most `longest` seconds. A longer time without measurements is a gap.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._seconds: dict[int, Bucket] = {}

    def lasted(self, values: Mapping[str, float], end: float, seconds: float) -> None:
        """Add values that lasted for `seconds` until `end`, in seconds since the epoch."""
        begin = end - min(seconds, self._longest)
        for second in range(math.floor(begin), math.ceil(end)):
            first, last = max(begin, second), min(end, second + 1)
            if last <= first:
                continue
            bucket = self._bucket(second, first, last)
            for name, value in values.items():
                bucket.spread(name).add(value, last - first)

    def varied(self, spreads: Mapping[str, Spread], second: int, began: float, ended: float) -> None:
        """Add spreads measured within one second, from `began` to `ended`."""
        bucket = self._bucket(second, began, ended)
        for name, spread in spreads.items():
            bucket.spread(name).merge(spread)

    def happened(self, values: Mapping[str, float], at: float) -> None:
        """Add single values measured at the time `at`, in seconds since the epoch."""
        second = int(at)
        bucket = self._seconds.get(second) or self._bucket(second, at, at)
        for name, value in values.items():
            (bucket.spreads.get(name) or bucket.spread(name)).add(value)

    def take(self) -> Buckets:
        """Return the measurements in buckets of every tier, to be added to earlier ones, and clear them here."""
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
    """Merge `more`, which must not be used afterwards, into `buckets`."""
    for key, bucket in more.items():
        found = buckets.get(key)
        if found is None:
            buckets[key] = bucket
        else:
            found.merge(bucket)


def bound(buckets: Buckets, now: float) -> None:
    """Drop the buckets that exceed each tier's maximum number, farthest from `now` first."""
    for tier in TIERS:
        keys = [key for key in buckets if key[0] == tier.seconds]
        if len(keys) > tier.most:
            keys.sort(key=lambda key: abs(key[1] - now))
            for key in keys[tier.most :]:
                del buckets[key]


@dataclass(frozen=True, slots=True)
class Window:
    """Time range to read from `tier`: `count` points of `step` seconds, the first at `first`."""

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
        """Start of each point in seconds since the epoch."""
        return range(self.first, self.last, self.step)


def window(start: float, end: float, points: int, now: float) -> Window:
    """Return the window that covers `start` to `end` in at most `points` points, which start at multiples of their length.

    The tier is the one with the most points among those that reach back to `start`; among equal ones it is the coarsest, which costs
    least. A point that begins before `start` is omitted; the point that contains `end` is included. Raises `ValueError` unless `end`
    is after `start`.
    """
    if not start < end or points < 1:
        raise ValueError(f"no points between {start} and {end}")
    reaching = [tier for tier in TIERS if now - start <= tier.keep + SLACK_SECONDS] or [TIERS[-1]]
    wanted = (end - start) / points
    step, tier = min(((_step(wanted, tier), tier) for tier in reaching), key=lambda found: (found[0], -found[1].seconds))
    first = math.ceil(start / step) * step
    return Window(tier, first, step, max(0, math.ceil(end / step) - first // step))


def _step(wanted: float, tier: Tier) -> int:
    """Return the shortest length of a point that consists of whole buckets and is at least `wanted` seconds."""
    return tier.seconds * max(1, math.ceil(wanted / tier.seconds - 1e-9))
