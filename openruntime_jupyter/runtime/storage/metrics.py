"""Metrics of all runtimes on disk, written behind in the tiers of `metrics/counters.py` and read as columns of equal length."""

from __future__ import annotations

import itertools
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.metrics.counters import METRICS, TIERS, Aggregation, Buckets, Metric, Tier
from openruntime_jupyter.runtime.storage.writer import Job

log = logging.getLogger(__name__)

PRUNE_SECONDS = 60.0
DIGITS = 6
"""Decimals of returned values: microseconds, or a millionth of a percent."""
SLACK_SECONDS = 5.0
"""Seconds by which the start of a query may exceed `keep`, to allow for its latency."""

Number = float | None


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


@dataclass(frozen=True, slots=True)
class Series:
    """Columns of one metric, with one value per point, None where no value exists.

    For a metric that counts tasks all three columns hold the number of tasks within the point.
    """

    metric: Metric
    min: list[Number]
    mean: list[Number]
    max: list[Number]


@dataclass(frozen=True, slots=True)
class MetricColumns:
    """Metrics over time. All columns have the length of `starts`, the start of each point in seconds since the epoch.

    `resolution` is the length of a point in seconds.
    """

    resolution: int
    starts: list[int]
    series: dict[str, Series]


def of_kind(*kinds: Aggregation) -> tuple[Metric, ...]:
    """Return the metrics of these kinds in order."""
    return tuple(metric for metric in METRICS if metric.kind in kinds)


def names(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the names of these metrics in order."""
    return tuple(metric.name for metric in metrics)


# Machine and task metrics use the spread over all rows; counts and levels use the sum of all rows.
_MACHINE = of_kind(Aggregation.MACHINE)
_SPREADS = of_kind(Aggregation.MACHINE, Aggregation.TASK)
_LEVELS = of_kind(Aggregation.LEVEL)
_COUNTS = of_kind(Aggregation.COUNT)
_SPREAD_NAMES = tuple(metric.name for metric in METRICS if metric.kind is not Aggregation.COUNT)
_COUNT_NAMES = names(_COUNTS)
_NOTHING = (None, None, None, None)

COLUMNS = (
    *(f"{name}_{part}" for name in _SPREAD_NAMES for part in ("low", "total", "high", "weight")),
    *(f"{name}_total" for name in _COUNT_NAMES),
)

_MERGED = {
    "low": "coalesce(min({0}, excluded.{0}), {0}, excluded.{0})",
    "high": "coalesce(max({0}, excluded.{0}), {0}, excluded.{0})",
    "total": "coalesce({0} + excluded.{0}, {0}, excluded.{0})",
    "weight": "coalesce({0} + excluded.{0}, {0}, excluded.{0})",
}
_ADD = (
    f"INSERT INTO metrics (tier, start, runtime, began, ended, {', '.join(COLUMNS)}) "  # noqa: S608 - constants
    f"VALUES ({', '.join('?' * (5 + len(COLUMNS)))}) ON CONFLICT (tier, start, runtime) DO UPDATE SET "
    "began = min(began, excluded.began), ended = max(ended, excluded.ended), "
    + ", ".join(f"{column} = {_MERGED[column.rpartition('_')[2]].format(column)}" for column in COLUMNS)
)


def write(connection: sqlite3.Connection, runtime: str, buckets: Buckets) -> None:
    """Add these buckets to the stored ones of the runtime."""
    rows = []
    for (tier, start), bucket in buckets.items():
        row: list[object] = [tier, start, runtime, bucket.began, bucket.ended]
        for name in _SPREAD_NAMES:
            spread = bucket.spreads.get(name)
            row += _NOTHING if spread is None else (round(spread.low, DIGITS), spread.total, round(spread.high, DIGITS), spread.weight)
        for name in _COUNT_NAMES:
            row.append(bucket.spreads[name].total if name in bucket.spreads else None)
        rows.append(row)
    connection.executemany(_ADD, rows)


def prune(connection: sqlite3.Connection, now: float) -> None:
    """Delete the buckets that exceed each tier's maximum number, farthest from `now` first.

    The limit is a number, not an age: a clock that shows a wrong year for a minute loses the buckets of that minute, not all of them.
    """
    for tier in TIERS:
        found = connection.execute("SELECT count(DISTINCT start) FROM metrics WHERE tier = ?", (tier.seconds,)).fetchone()[0]
        if found > tier.most:
            connection.execute(
                "DELETE FROM metrics WHERE tier = ?1 AND start IN "
                "(SELECT DISTINCT start FROM metrics WHERE tier = ?1 ORDER BY abs(start - ?2) DESC LIMIT ?3)",
                (tier.seconds, now, found - tier.most),
            )


_FROM = "FROM metrics WHERE tier = :tier AND start >= :first AND start < :last AND (:runtime IS NULL OR runtime = :runtime)"


def _by_point(spreads: Sequence[Metric], sums: Sequence[Metric]) -> str:
    """Return the query for the low, mean and high of each of `spreads`, and the total of each of `sums`."""
    columns = [f"min({name}_low), sum({name}_total) / nullif(sum({name}_weight), 0), max({name}_high)" for name in names(spreads)]
    columns += [f"total({name}_total)" for name in names(sums)]
    return f"SELECT (start - :first) / :step, {', '.join(columns)} {_FROM} GROUP BY 1"


_READ = _by_point(_SPREADS, (*_COUNTS, *_LEVELS))
_READ_SAMPLED = _by_point(_MACHINE, _LEVELS)

# Levels of runtimes that ran at the same time are added; levels of consecutive runtimes are not. In the first case the `min` and `max`
# of the sum are bounds: it is never below the lowest level of a runtime, and never above the sum of the highest levels.
_SPAN = "max(ended) - min(began)"
_TOGETHER = f"sum(ended - began) > {_SPAN} + 0.01"
_BUCKET_LEVELS = (
    "SELECT start, "
    + ", ".join(
        f"min({name}_low) AS {name}_low, CASE WHEN {_TOGETHER} THEN sum({name}_high) ELSE max({name}_high) END AS {name}_high, "
        f"max(max({name}_weight), min(sum({name}_weight), {_SPAN})) AS {name}_weight"
        for name in names(_LEVELS)
    )
    + f" {_FROM} GROUP BY start"
)
_READ_LEVELS = (
    "SELECT (start - :first) / :step, "  # noqa: S608 - constants
    + ", ".join(f"min({name}_low), max({name}_high), sum({name}_weight)" for name in names(_LEVELS))
    + f" FROM ({_BUCKET_LEVELS}) GROUP BY 1"
)
# If a point is one bucket, the second grouping is skipped: it would take as long as the rest of the query.
_READ_BUCKET_LEVELS = (
    "SELECT (start - :first) / :step, "  # noqa: S608 - constants
    + ", ".join(f"{name}_low, {name}_high, {name}_weight" for name in names(_LEVELS))
    + f" FROM ({_BUCKET_LEVELS})"
)


def read(connection: sqlite3.Connection, window: Window, runtime: str | None, sampled_only: bool = False) -> MetricColumns:
    """Return the metrics of one runtime, or of all, within a window; `sampled_only` omits task metrics, which saves time."""
    bindings = {"tier": window.tier.seconds, "first": window.first, "last": window.last, "step": window.step, "runtime": runtime}
    spreads, counts = (_MACHINE, ()) if sampled_only else (_SPREADS, _COUNTS)
    found = _columns(window.count, connection.execute(_READ_SAMPLED if sampled_only else _READ, bindings).fetchall())
    series = {metric.name: Series(metric, next(found), _rounded(next(found)), next(found)) for metric in spreads}
    for metric in counts:
        number = next(found)
        series[metric.name] = Series(metric, number, number, number)
    totals = [next(found) for _ in _LEVELS]
    levels = _READ_BUCKET_LEVELS if window.step == window.tier.seconds else _READ_LEVELS
    found = _columns(window.count, connection.execute(levels, bindings).fetchall())
    for metric, total in zip(_LEVELS, totals, strict=True):
        low, high, weight = next(found), next(found), next(found)
        mean = [number / seconds if number is not None and seconds else None for number, seconds in zip(total, weight, strict=True)]
        series[metric.name] = Series(metric, low, _rounded(mean), high)
    in_order = {metric.name: series[metric.name] for metric in METRICS if metric.name in series}
    return MetricColumns(window.step, list(window.starts), in_order)


def _columns(count: int, rows: list[tuple[Any, ...]]) -> Iterator[list[Number]]:
    """Yield the columns of a query result, padded with None to `count` points; the first column of `rows` has the points."""
    points, *columns = zip(*rows, strict=True) if rows else [()]
    for values in itertools.chain(columns, itertools.repeat(())):
        column: list[Number] = [None] * count
        for point, value in zip(points, values, strict=False):
            column[point] = value
        yield column


def _rounded(column: list[Number]) -> list[Number]:
    return [None if value is None else round(value, DIGITS) for value in column]


def add_to(buckets: Buckets, more: Buckets) -> None:
    """Merge `more` into `buckets`."""
    for key, bucket in more.items():
        buckets[key].merge(bucket)


def bound(buckets: Buckets, now: float) -> None:
    """Drop the buckets that exceed each tier's maximum number, farthest from `now` first."""
    for tier in TIERS:
        keys = [key for key in buckets if key[0] == tier.seconds]
        if len(keys) > tier.most:
            keys.sort(key=lambda key: abs(key[1] - now))
            for key in keys[tier.most :]:
                del buckets[key]


class MetricsWriteBehind:
    """Write-behind buffer of metrics. Buckets of a failed write are kept, up to the tiers' limits, and written with the next ones."""

    def __init__(self, runtime: str, submit: Callable[[list[Job]], None]) -> None:
        self.in_flight = 0
        """Number of submitted writes that have not ended."""
        self._runtime = runtime
        self._submit = submit
        self._waiting = Buckets()
        self._pruned = -PRUNE_SECONDS

    def add(self, buckets: Buckets) -> None:
        """Submit these buckets together with those of failed writes."""
        add_to(self._waiting, buckets)
        if not self._waiting:
            return
        written, self._waiting = self._waiting, Buckets()
        due = time.monotonic() - self._pruned >= PRUNE_SECONDS
        if due:
            self._pruned = time.monotonic()

        def work(connection: sqlite3.Connection) -> None:
            write(connection, self._runtime, written)
            if due:
                prune(connection, time.time())

        def done(_: object, error: BaseException | None) -> None:
            self.in_flight -= 1
            if isinstance(error, StorageUnavailable):
                add_to(self._waiting, written)
                bound(self._waiting, time.time())
            elif error is not None:
                log.error("The metrics of the last seconds are lost", exc_info=error)

        self.in_flight += 1
        self._submit([Job(work, done)])
