"""The figures of all runtimes on disk: written behind in the tiers of `tiers.py`, and read as columns of equal length."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.metrics.definitions import FIGURES, Figure, Kind, names, of_kind
from openruntime_jupyter.runtime.metrics.rollup import TIERS, Buckets, Window, add_to, bound
from openruntime_jupyter.runtime.storage.writer import Job

log = logging.getLogger(__name__)

PRUNE_SECONDS = 60.0
DIGITS = 6
"""Decimals that are told: microseconds, or a millionth of a percent."""

Number = float | None


@dataclass(frozen=True, slots=True)
class Series:
    """One figure: a value a point in each column, None where there is none.

    Of a figure that counts tasks all three are how many there were within the point.
    """

    figure: Figure
    min: list[Number]
    mean: list[Number]
    max: list[Number]


@dataclass(frozen=True, slots=True)
class MetricColumns:
    """Figures over time. All columns are as long as `starts`: when each point starts, in seconds since the epoch.

    `resolution` is the length of a point in seconds.
    """

    resolution: int
    starts: list[int]
    series: dict[str, Series]


# Machine figures and those of tasks: the spread of all rows together. Counts and levels: the sum of all rows.
_MACHINE = of_kind(Kind.MACHINE)
_SPREADS = of_kind(Kind.MACHINE, Kind.TASK)
_LEVELS = of_kind(Kind.LEVEL)
_COUNTS = of_kind(Kind.COUNT)
_SPREAD_NAMES = tuple(figure.name for figure in FIGURES if figure.kind is not Kind.COUNT)
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
    """Add these to what is there of the runtime."""
    rows = []
    for (tier, start), bucket in buckets.items():
        row: list[object] = [tier, start, runtime, bucket.began, bucket.ended]
        for name in _SPREAD_NAMES:
            spread = bucket.spreads.get(name)
            row += _NOTHING if spread is None else (round(spread.low, DIGITS), spread.total, round(spread.high, DIGITS), spread.weight)
        for name in _COUNT_NAMES:
            spread = bucket.spreads.get(name)
            row.append(None if spread is None else spread.total)
        rows.append(row)
    connection.executemany(_ADD, rows)


def prune(connection: sqlite3.Connection, now: float) -> None:
    """Delete what is beyond each tier's number of buckets, the farthest from `now` first.

    By number and not by age: a clock that shows a wrong year for a minute costs a minute's buckets, and not all there are.
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


def _by_point(spreads: Sequence[Figure], sums: Sequence[Figure]) -> str:
    """Low, mean and high of each of `spreads`, and the total of each of `sums`."""
    columns = [f"min({name}_low), sum({name}_total) / nullif(sum({name}_weight), 0), max({name}_high)" for name in names(spreads)]
    columns += [f"total({name}_total)" for name in names(sums)]
    return f"SELECT (start - :first) / :step, {', '.join(columns)} {_FROM} GROUP BY 1"


_READ = _by_point(_SPREADS, (*_COUNTS, *_LEVELS))
_READ_SAMPLED = _by_point(_MACHINE, _LEVELS)

# Levels of runtimes that were there together add up, those of one after the other do not. `min` and `max` of the sum are not known
# exactly in the first case: no level falls below the lowest of a runtime, none rises above the sum of the highest.
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
# Where a point is one bucket there is nothing to group again, which would take as long as all the rest.
_READ_BUCKET_LEVELS = (
    "SELECT (start - :first) / :step, "  # noqa: S608 - constants
    + ", ".join(f"{name}_low, {name}_high, {name}_weight" for name in names(_LEVELS))
    + f" FROM ({_BUCKET_LEVELS})"
)


def read(connection: sqlite3.Connection, window: Window, runtime: str | None, sampled_only: bool = False) -> MetricColumns:
    """The figures of one runtime, or of all, within a window; `sampled_only` leaves out those of tasks, which saves time."""
    asked = {"tier": window.tier.seconds, "first": window.first, "last": window.last, "step": window.step, "runtime": runtime}
    spreads, counts = (_MACHINE, ()) if sampled_only else (_SPREADS, _COUNTS)
    found = _Columns(window.count, connection.execute(_READ_SAMPLED if sampled_only else _READ, asked).fetchall())
    series = {figure.name: Series(figure, found.next(), _rounded(found.next()), found.next()) for figure in spreads}
    for figure in counts:
        number = found.next()
        series[figure.name] = Series(figure, number, number, number)
    totals = [found.next() for _ in _LEVELS]
    levels = _READ_BUCKET_LEVELS if window.step == window.tier.seconds else _READ_LEVELS
    found = _Columns(window.count, connection.execute(levels, asked).fetchall())
    for figure, total in zip(_LEVELS, totals, strict=True):
        low, high, weight = found.next(), found.next(), found.next()
        mean = [number / seconds if number is not None and seconds else None for number, seconds in zip(total, weight, strict=True)]
        series[figure.name] = Series(figure, low, _rounded(mean), high)
    in_order = {figure.name: series[figure.name] for figure in FIGURES if figure.name in series}
    return MetricColumns(window.step, list(window.starts), in_order)


class _Columns:
    """The columns of an answer of SQLite's one after the other, each as long as the window; the first one says which points they are."""

    def __init__(self, count: int, rows: list[tuple[Any, ...]]) -> None:
        columns: Iterator[tuple[Any, ...]] = zip(*rows, strict=True)
        self._points: tuple[int, ...] = next(columns, ())
        self._columns = columns
        self._count = count

    def next(self) -> list[Number]:
        """The next one, with None where there is no row."""
        column: list[Number] = [None] * self._count
        for point, value in zip(self._points, next(self._columns, ()), strict=True):
            column[point] = value
        return column


def _rounded(column: list[Number]) -> list[Number]:
    return [None if value is None else round(value, DIGITS) for value in column]


class MetricsBehind:
    """What is not on disk yet. What the disk refuses is kept, as much of it as the disk would keep, and goes with the next."""

    def __init__(self, runtime: str, submit: Callable[[list[Job]], None]) -> None:
        self._runtime = runtime
        self._submit = submit
        self._waiting: Buckets = {}
        self._batches: set[asyncio.Future[None]] = set()
        self._pruned = -PRUNE_SECONDS

    def add(self, buckets: Buckets) -> None:
        """Take these, and hand over all that waits."""
        add_to(self._waiting, buckets)
        if self._waiting:
            buckets, self._waiting = self._waiting, {}
            self._submit([self._fly(buckets)])

    async def flush(self, seconds: float) -> None:
        """Wait up to `seconds` until the disk has taken or refused what was handed over."""
        if self._batches:
            await asyncio.wait(tuple(self._batches), timeout=seconds)

    def _fly(self, buckets: Buckets) -> Job:
        future = asyncio.get_running_loop().create_future()
        self._batches.add(future)
        due = time.monotonic() - self._pruned >= PRUNE_SECONDS
        if due:
            self._pruned = time.monotonic()

        def work(connection: sqlite3.Connection) -> None:
            write(connection, self._runtime, buckets)
            if due:
                prune(connection, time.time())

        def done(_: object, error: BaseException | None) -> None:
            self._batches.discard(future)
            if isinstance(error, StorageUnavailable):
                add_to(self._waiting, buckets)
                bound(self._waiting, time.time())
            elif error is not None:
                log.error("Figures of the last seconds are lost", exc_info=error)
            if not future.done():
                future.set_result(None)

        return Job(work, done)
