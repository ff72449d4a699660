from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openruntime_jupyter.runtime.metrics.counters import METRICS, TIERS, Aggregation, Buckets, Ledger
from openruntime_jupyter.runtime.storage.metrics import COLUMNS, MetricColumns, of_kind, prune, read, window, write
from openruntime_jupyter.runtime.storage.schema import migrate
from openruntime_jupyter.runtime.storage.store import History
from tests.runtime.history_support import fill_disk, rows

NOW = 1_800_000_000
DAY = 86_400
SPANS = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "24h": DAY, "7d": 7 * DAY}
MANY, ONE = 300, 2016
"""Points of a week: each of many buckets, and each of one."""
Interval = tuple[float, float, float]


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    with contextlib.closing(connection):
        yield connection


def store(connection: sqlite3.Connection, raw: list[Interval], runtime: str = "rt_1", figure: str = "memory_usage") -> None:
    """Write the buckets of a runtime that measured these values from begin to end."""
    ledger = Ledger(1e6)
    for begin, end, value in raw:
        ledger.add_interval({figure: value}, end, end - begin)
    write(connection, runtime, ledger.take())


def ask(connection: sqlite3.Connection, span: float, points: int = 300, now: float = NOW, runtime: str | None = None) -> MetricColumns:
    return read(connection, window(now - span, now, points, now), runtime)


def oracle(raw: list[Interval], begin: float, end: float) -> list[float | None]:
    parts = [(value, min(until, end) - max(since, begin)) for since, until, value in raw]
    parts = [(value, weight) for value, weight in parts if weight > 0]
    if not parts:
        return [None] * 3
    mean = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    return [min(value for value, _ in parts), mean, max(value for value, _ in parts)]


def assert_right(found: MetricColumns, raw: list[Interval], figure: str = "memory_usage") -> None:
    """Check that each point matches the raw samples within it, and is None without samples."""
    series, step = found.series[figure], found.resolution
    assert len(found.starts) == len(series.min) == len(series.mean) == len(series.max)
    within: dict[int, list[Interval]] = {}
    for each in raw:
        for start in range(math.floor(each[0] / step) * step, math.ceil(each[1]), step):
            within.setdefault(start, []).append(each)
    for start, *point in zip(found.starts, series.min, series.mean, series.max, strict=True):
        expected = oracle(within.get(start, []), start, start + step)
        if expected[0] is None:
            assert point == [None] * 3, start
        else:
            assert point == pytest.approx(expected, abs=1e-5), start


QUARTERS = st.integers(1, 4 * 20).map(lambda number: number / 4)
JUMPS = st.one_of(st.just(0.0), st.just(0.0), st.integers(-4 * 3000, 4 * 3000).map(lambda number: number / 4))


@given(st.lists(st.tuples(QUARTERS, JUMPS, st.integers(0, 100)), min_size=1, max_size=30), st.integers(1, 5), st.integers(10, 400))
@settings(deadline=None, max_examples=60)
def test_series_match_raw_samples_with_any_clock_changes(steps: list[tuple[float, float, int]], writes: int, points: int) -> None:
    with database() as connection:
        raw, now = [], float(NOW - 3000)
        for seconds, jump, value in steps:
            now += seconds
            raw.append((now - seconds, now, float(value)))
            now += jump
        for part in range(writes):
            store(connection, raw[part::writes])
        for span in SPANS.values():
            assert_right(ask(connection, span, points), raw)


def test_wrong_clock_for_a_minute_loses_only_that_minute() -> None:
    with database() as connection:
        raw = [(float(NOW - 900 + step), float(NOW - 899 + step), float(step % 7)) for step in range(900)]
        store(connection, raw)
        for wrong in (NOW + 14 * 365 * DAY, 60):
            store(connection, [(wrong, wrong + 60.0, 5.0)])
            prune(connection, wrong + 60)
        prune(connection, NOW)
        missing = sum(mean is None for mean in ask(connection, 900, 900).series["memory_usage"].mean)
        assert missing <= 60
        assert_right(ask(connection, 7 * DAY, 300), raw)


def test_gap_is_none_not_zero() -> None:
    with database() as connection:
        store(connection, [(NOW - 300.0, NOW - 200.0, 5.0), (NOW - 100.0, float(NOW), 0.0)])
        found = ask(connection, 300)
        for name, series in found.series.items():
            assert series.mean[100:200] == [None] * 100, name
            assert series.min[100:200] == series.max[100:200] == [None] * 100, name
        assert found.series["memory_usage"].mean[200:] == [0.0] * 100
        assert found.series["gpu_utilization"].mean == [None] * 300, "it was never measured"
        assert found.series["failed_tasks"].mean[:100] == [0.0] * 100, "measured, and none failed"


def test_only_runtime_metrics_of_several_runtimes_are_added() -> None:
    with database() as connection:
        for runtime, value in (("rt_1", 1.0), ("rt_2", 3.0)):
            for figure in (each.name for each in METRICS if each.kind in (Aggregation.MACHINE, Aggregation.LEVEL)):
                store(connection, [(NOW - 600.0, float(NOW), value)], runtime, figure)
        for span in SPANS.values():
            found = ask(connection, span, 100)
            for each in of_kind(Aggregation.MACHINE):
                series = found.series[each.name]
                assert (series.min[-1], series.mean[-1], series.max[-1]) == (1.0, 2.0, 3.0)
            for each in of_kind(Aggregation.LEVEL):
                series = found.series[each.name]
                assert series.mean[-1] == pytest.approx(4.0)
                assert series.max[-1] == 4.0
        alone = ask(connection, 3600, 100, runtime="rt_2")
        assert (alone.series["active_tasks"].mean[-1], alone.series["memory_usage"].mean[-1]) == (3.0, 3.0)
        assert ask(connection, 3600, 100, runtime="rt_3").series["memory_usage"].mean == [None] * len(alone.starts)


@pytest.mark.parametrize("points", [MANY, ONE])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((NOW - 300.0, NOW - 160.0, 2.0), (NOW - 150.0, float(NOW), 2.0), (2.0, pytest.approx(2.0), 2.0)),
        ((NOW - 300.0, float(NOW), 1.0), (NOW - 75.0, float(NOW), 4.0), (1.0, pytest.approx(2.0), 5.0)),
    ],
    ids=["one after the other, within one bucket", "together for a quarter of it"],
)
def test_levels_are_added_while_both_runtimes_run(first: Interval, second: Interval, expected: tuple[Any, ...], points: int) -> None:
    with database() as connection:
        store(connection, [first], "rt_1", "active_tasks")
        store(connection, [second], "rt_2", "active_tasks")
        series = ask(connection, 7 * DAY, points).series["active_tasks"]
        assert (series.min[-1], series.mean[-1], series.max[-1]) == expected


@pytest.mark.parametrize("points", [MANY, ONE])
def test_sampled_only_returns_the_same_sampled_series(points: int) -> None:
    with database() as connection:
        for runtime, value in (("rt_1", 1.0), ("rt_2", 3.0)):
            for figure in METRICS:
                lasted = [(NOW - since, NOW - since + 200.0, value + number) for number, since in enumerate((90_000.0, 4_000.0, 500.0))]
                store(connection, lasted, runtime, figure.name)
        wanted = window(NOW - 7 * DAY, NOW, points, NOW)
        whole, sampled = read(connection, wanted, None), read(connection, wanted, None, sampled_only=True)
        kept = [figure.name for figure in of_kind(Aggregation.MACHINE, Aggregation.LEVEL)]
        assert {name: whole.series[name] for name in kept} == sampled.series
        assert any(value is not None for value in sampled.series["active_tasks"].max)
        assert (whole.starts, whole.resolution) == (sampled.starts, sampled.resolution)


def test_task_metrics_cover_all_tasks() -> None:
    with database() as connection:
        for runtime, times in (("rt_1", (1.0, 2.0)), ("rt_2", (6.0,))):
            ledger = Ledger(60.0)
            for seconds in times:
                ledger.add_event({"run_time": seconds, "completed_tasks": 1.0}, NOW - 42.0)
            write(connection, runtime, ledger.take())
        for span in SPANS.values():
            found = ask(connection, span)
            place = next(index for index, start in enumerate(found.starts) if start <= NOW - 42 < start + found.resolution)
            took = found.series["run_time"]
            assert (took.min[place], took.mean[place], took.max[place]) == (1.0, 3.0, 6.0)
            assert found.series["completed_tasks"].mean[place] == 3.0
            assert sum(mean or 0 for mean in found.series["completed_tasks"].mean) == 3.0


def test_every_metric_has_columns_in_newest_schema() -> None:
    with database() as connection:
        there = [name for _, name, *_ in connection.execute("PRAGMA table_info(metrics)")]
    assert there == ["tier", "start", "runtime", "began", "ended", *COLUMNS]


async def test_put_metrics_are_readable_and_added(history: History) -> None:
    now = math.floor(time.time())
    for value in (1.0, 3.0):
        ledger = Ledger(60.0)
        ledger.add_interval({"memory_usage": value}, now - 1.0, 1.0)
        ledger.add_event({"failed_tasks": 1.0}, now - 2.0)
        history.put_metrics(ledger.take())
    found = await history.metrics(now - 5, now, 5)
    assert found.series["memory_usage"].mean == [None, None, None, 2.0, None]
    assert found.series["memory_usage"].max[3] == 3.0
    assert found.series["failed_tasks"].mean == [None, None, None, 2.0, None]


async def test_failed_metric_writes_are_kept_bounded_and_retried(history: History, tmp_path: Path) -> None:
    now = math.floor(time.time())
    await history.metrics(now - 10, now, 10)
    fill_disk(history)
    for start in range(now - 5000, now, 1000):
        ledger = Ledger(1000.0)
        ledger.add_interval({"memory_usage": 7.0}, start + 1000, 1000)
        history.put_metrics(ledger.take())
        await history._flush(10.0)
    assert history.problem is not None
    assert rows(tmp_path, "SELECT count(*) FROM metrics") == [(0,)]
    assert len([key for key in history._metrics._waiting if key[0] == 1]) == TIERS[0].most
    fill_disk(history, False)
    history.put_metrics(Buckets())
    found = await history.metrics(now - 900, now, 900)
    assert found.series["memory_usage"].mean == [7.0] * 900


async def test_metrics_are_pruned_while_writing(history: History, tmp_path: Path) -> None:
    now = math.floor(time.time())
    ledger = Ledger(1e6)
    ledger.add_interval({"memory_usage": 7.0}, now, 4000)
    history.put_metrics(ledger.take())
    await history._flush(10.0)
    assert rows(tmp_path, "SELECT count(*) FROM metrics WHERE tier = 1") == [(TIERS[0].most,)]
    assert rows(tmp_path, "SELECT count(*) FROM metrics WHERE tier = 10")[0][0] >= 400
