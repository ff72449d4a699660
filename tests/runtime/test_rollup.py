from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openruntime_jupyter.runtime.metrics.counters import TIERS, Bucket, Buckets, Ledger
from openruntime_jupyter.runtime.storage.metrics import bound, window

NOW = 1_800_000_000.0


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
