from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openruntime_jupyter.runtime.metrics.counters import TIERS, Bucket, Buckets, Ledger, Tier
from openruntime_jupyter.runtime.storage.metrics import add_to, bound, window

NOW = 1_800_000_000.0
Interval = tuple[float, float, float]
"""Begin and end since the epoch, and the value in between."""

# Steps of an eighth of a second add up exactly.
EIGHTHS = st.integers(1, 8 * 40).map(lambda number: number / 8)
JUMPS = st.one_of(st.just(0.0), st.integers(-8 * 4000, 8 * 4000).map(lambda number: number / 8))
VALUES = st.integers(-1000, 1000).map(float)
STEPS = st.lists(st.tuples(EIGHTHS, JUMPS, VALUES), min_size=1, max_size=25)


def intervals(steps: Sequence[tuple[float, float, float]]) -> list[Interval]:
    """Return the intervals of a clock that is changed by `jump` after each step."""
    found, now = [], NOW
    for seconds, jump, value in steps:
        now += seconds
        found.append((now - seconds, now, value))
        now += jump
    return found


def oracle(raw: Iterable[Interval], tier: Tier) -> dict[int, tuple[float, float, float, float]]:
    """Return low, high, total and weight of each bucket, computed directly from the definition."""
    found: dict[int, list[tuple[float, float]]] = {}
    for begin, end, value in raw:
        for start in range(math.floor(begin / tier.seconds) * tier.seconds, math.ceil(end), tier.seconds):
            seconds = min(end, start + tier.seconds) - max(begin, start)
            if seconds > 0:
                found.setdefault(start, []).append((value, seconds))
    return {
        start: (
            min(value for value, _ in parts),
            max(value for value, _ in parts),
            sum(value * seconds for value, seconds in parts),
            sum(seconds for _, seconds in parts),
        )
        for start, parts in found.items()
    }


def of_tier(buckets: Buckets, tier: Tier) -> dict[int, tuple[float, float, float, float]]:
    return {
        start: (each.spreads["x"].low, each.spreads["x"].high, each.spreads["x"].total, each.spreads["x"].weight)
        for (seconds, start), each in buckets.items()
        if seconds == tier.seconds
    }


@given(STEPS, st.sets(st.integers(0, 24)))
@settings(deadline=None)
def test_tiers_match_raw_samples_with_clock_jumps(steps: list[tuple[float, float, float]], writes: set[int]) -> None:
    ledger, stored = Ledger(60.0), Buckets()
    raw = intervals(steps)
    for number, (begin, end, value) in enumerate(raw):
        ledger.add_interval({"x": value}, end, end - begin)
        if number in writes:
            add_to(stored, ledger.take())
    add_to(stored, ledger.take())
    for tier in TIERS:
        assert of_tier(stored, tier) == oracle(raw, tier)
        # No time is counted twice or lost: the weights of every tier equal the durations.
        assert sum(each[3] for each in of_tier(stored, tier).values()) == sum(seconds for seconds, _, _ in steps)


@given(st.lists(st.tuples(st.integers(0, 8 * 900).map(lambda number: NOW + number / 8), VALUES), min_size=1, max_size=40))
@settings(deadline=None)
def test_single_values_count_once_in_every_tier(events: list[tuple[float, float]]) -> None:
    ledger = Ledger(60.0)
    for at, value in events:
        ledger.add_event({"x": value, "n": 1.0}, at)
    buckets = ledger.take()
    for tier in TIERS:
        mine = [bucket for (seconds, _), bucket in buckets.items() if seconds == tier.seconds]
        assert sum(bucket.spreads["n"].total for bucket in mine) == len(events)
        assert sum(bucket.spreads["x"].total for bucket in mine) == sum(value for _, value in events)
        assert min(bucket.spreads["x"].low for bucket in mine) == min(value for _, value in events)
        assert max(bucket.spreads["x"].high for bucket in mine) == max(value for _, value in events)


def test_buckets_record_measured_range() -> None:
    ledger = Ledger(60.0)
    ledger.add_interval({"x": 1.0}, NOW + 7.25, 3.0)
    buckets = ledger.take()
    assert {(start - NOW, each.began - NOW, each.ended - NOW) for (tier, start), each in buckets.items() if tier == 1} == {
        (4, 4.25, 5),
        (5, 5, 6),
        (6, 6, 7),
        (7, 7, 7.25),
    }
    assert [(each.began - NOW, each.ended - NOW) for (tier, _), each in buckets.items() if tier == 300] == [(4.25, 7.25)]


def test_long_time_without_sample_is_a_gap() -> None:
    ledger = Ledger(20.0)
    ledger.add_interval({"x": 1.0}, NOW + 3600, 3600)
    assert sum(each.spreads["x"].weight for (tier, _), each in ledger.take().items() if tier == 1) == 20
    assert not ledger.take(), "taken buckets are not returned again"


def test_bound_keeps_buckets_nearest_to_now() -> None:
    buckets = Buckets()
    for start in range(int(NOW) - 5000, int(NOW) + 5000):
        buckets[1, start] = Bucket(start, start + 1)
    buckets[300, 0] = Bucket(0, 300)
    bound(buckets, NOW)
    fine = sorted(start for tier, start in buckets if tier == 1)
    assert len(fine) == TIERS[0].most
    assert abs(fine[0] - NOW) <= TIERS[0].most / 2
    assert abs(fine[-1] - NOW) <= TIERS[0].most / 2
    assert (300, 0) in buckets, "tiers have separate limits"


@pytest.mark.parametrize(
    ("span", "points", "tier", "step", "count"),
    [
        (300, 300, 1, 1, 300),
        (900, 300, 1, 3, 300),
        (3600, 10, 60, 360, 10),
        (21_600, 2000, 10, 20, 1080),
        (604_800, 300, 300, 2100, 288),
    ],
)
def test_window_uses_cheapest_tier_with_most_points(span: int, points: int, tier: int, step: int, count: int) -> None:
    found = window(NOW - span, NOW, points, NOW)
    assert (found.tier.seconds, found.step) == (tier, step)
    assert abs(found.count - count) <= 1


@given(st.floats(0, 8e5), st.floats(0.001, 7e5), st.integers(1, 2000), st.floats(0, 0.999))
def test_window_covers_range_in_at_most_the_requested_points(age: float, span: float, points: int, fraction: float) -> None:
    start = NOW + fraction - age
    end = start + span
    found = window(start, end, points, NOW)
    assert found.count <= points
    assert found.step % found.tier.seconds == 0
    assert found.first % found.step == 0
    assert len(found.starts) == found.count
    if found.count:
        assert start <= found.first < start + found.step
        assert found.last - found.step < end <= found.last
    else:
        assert span < found.step
    assert age > found.tier.keep or NOW - found.first <= found.tier.seconds * found.tier.most


@pytest.mark.parametrize(("start", "end", "points"), [(NOW, NOW, 10), (NOW + 1, NOW, 10), (NOW - 10, NOW, 0)])
def test_empty_window_is_rejected(start: float, end: float, points: int) -> None:
    with pytest.raises(ValueError, match="no points"):
        window(start, end, points, NOW)
