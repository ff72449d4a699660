"""Statistics match their definitions, tolerate outliers and gaps, and keep their false alarm rates."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openruntime_jupyter.ai.insights.statistics import (
    Array,
    blocks,
    burst,
    climb,
    episodes,
    mann_kendall,
    rank_sum,
    robust_scale,
    theil_sen,
    trend,
)

N = 360
TIMES = np.arange(N) * 10.0
NUMBERS = st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=30)
ROUNDS = 100


def array(values: list[float]) -> Array:
    return np.array(values, dtype=np.float64)


@given(NUMBERS)
@settings(deadline=None, max_examples=50)
def test_tau_and_slope_match_all_pairs(values: list[float]) -> None:
    pairs = list(itertools.combinations(range(len(values)), 2))
    rising = sum((values[b] > values[a]) - (values[b] < values[a]) for a, b in pairs)
    tau, chance = mann_kendall(array(values))
    assert tau == pytest.approx(rising / len(pairs))
    assert 0 <= chance <= 1
    slope, _ = theil_sen(array([2.0 * place for place in range(len(values))]), array(values))
    assert slope == pytest.approx(statistics.median((values[b] - values[a]) / (2.0 * (b - a)) for a, b in pairs))


def test_rank_sum_probability_is_near_exact() -> None:
    some, others = [1.0, 2.0, 3.0, 5.0], [4.0, 6.0, 7.0, 8.0, 9.0]
    together = some + others
    found = sum(a > b for a in some for b in others)
    counts = []
    for chosen in itertools.combinations(together, len(some)):
        rest = [value for value in together if value not in chosen]
        counts.append(sum(a > b for a in chosen for b in rest))
    middle_count = len(some) * len(others) / 2
    exactly = sum(abs(count - middle_count) >= abs(found - middle_count) for count in counts) / len(counts)
    assert rank_sum(array(some), array(others)) == pytest.approx(exactly, abs=0.03)
    assert rank_sum(np.ones(10), np.ones(10)) == 1.0


def test_robust_scale_ignores_outliers() -> None:
    values = np.random.default_rng(1).normal(10, 2, 10_000)
    assert robust_scale(values) == (pytest.approx(10, abs=0.1), pytest.approx(2, abs=0.1))
    values[:1000] = 1e9
    assert robust_scale(values) == (pytest.approx(10, abs=0.4), pytest.approx(2, abs=0.4))
    assert robust_scale(array([5, 5, 5, 5, 5, 9]))[1] > 0, "where most are equal the others still tell"


def test_block_medians_skip_gaps_and_keep_order() -> None:
    values = np.arange(100.0)
    values[20:40] = math.nan
    times, medians = blocks(np.arange(100.0), values, 8)
    assert times.tolist() == medians.tolist() == sorted(medians.tolist())
    assert len(medians) == 8


def test_episode_has_maximum_and_spans_gaps() -> None:
    values = np.random.default_rng(1).normal(40, 1, N)
    values[100:106] = [60, 61, math.nan, 70, 62, 60]
    values[300] = 90
    found = episodes(values, least=8)
    assert [(each.first, each.last, each.top) for each in found] == [(300, 300, 300), (100, 105, 103)]
    assert episodes(values, least=100) == []
    assert episodes(np.full(N, math.nan), least=1) == []
    values[::5] = 95.0
    assert episodes(values, least=30) == [], "frequent values are not exceptions"


def test_trend_is_found_through_noise_and_outliers() -> None:
    dice = np.random.default_rng(1)
    values = 40 + 20 * TIMES / TIMES[-1] + dice.normal(0, 1, N)
    values[dice.choice(N, 30, replace=False)] = 1e6
    line = trend(TIMES, values)
    assert line is not None
    assert (line.at_begin, line.at_end) == (pytest.approx(40, abs=1), pytest.approx(60, abs=2))
    assert trend(TIMES, -values) is not None
    assert trend(TIMES[:11], values[:11]) is None, "too few"


def test_climb_has_its_ends_and_oscillation_has_none() -> None:
    dice = np.random.default_rng(1)
    ramp = 40 + 30 * np.clip((np.arange(N) - 100) / 150, 0, 1) + dice.normal(0, 0.5, N)
    line = climb(TIMES, ramp, least=5)
    assert line is not None
    assert (line.begin, line.end) == (pytest.approx(1000, abs=100), pytest.approx(2500, abs=100))
    assert climb(TIMES, ramp, least=50) is None
    there_and_back = np.concatenate([ramp[100:250], ramp[100:250][::-1]])
    assert climb(TIMES[: there_and_back.size], there_and_back, least=5) is None
    at_once = np.concatenate([ramp[100:250], np.full(60, 40.0)])
    assert climb(TIMES[: at_once.size], at_once, least=5) is not None
    came_down = np.linspace(70, 40, 150)
    assert climb(TIMES[:150], ramp[100:250], least=5) is not None
    assert climb(TIMES[:150], ramp[100:250], least=5, before=came_down) is None


def test_burst_is_relative_to_finished_tasks() -> None:
    ended, failed = np.full(500, 10.0), np.zeros(500)
    failed[::50] = 1
    failed[200:205] = 6
    found = burst(failed, ended)
    assert found is not None
    assert (found.first, found.last, found.failed) == (200, 204, 30)
    busy = np.full(500, 10.0)
    busy[200:205] = 1000.0
    assert burst(busy * 0.1, busy) is None, "where a hundred times as many run, a hundred times as many fail"
    assert burst(ended, ended) is None, "all fail all the time"
    assert burst(np.zeros(500), ended) is None


def correlated(dice: np.random.Generator) -> Array:
    values = dice.normal(size=N)
    for position in range(1, N):
        values[position] += 0.95 * values[position - 1]
    return values


NOISES: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda dice: dice.normal(size=N),
    "correlated": correlated,
    "random walk": lambda dice: np.cumsum(dice.normal(size=N)),
    "skewed": lambda dice: np.exp(dice.normal(size=N)),
    "once up and down": lambda dice: 20 * np.sin(2 * np.pi * (np.arange(N) / N + dice.random())) + dice.normal(size=N),
    "often up and down": lambda dice: 20 * np.sin(2 * np.pi * (7 * np.arange(N) / N + dice.random())) + dice.normal(size=N),
    "one step": lambda dice: np.where(np.arange(N) > dice.integers(20, N - 20), 20.0, 0.0) + dice.normal(size=N),
}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_findings_in_under_two_percent(noise: str) -> None:
    dice = np.random.default_rng(20_26)
    found = [NOISES[noise](dice) + 50 for _ in range(ROUNDS)]
    assert sum(trend(TIMES, values) is not None for values in found) < 0.02 * ROUNDS
    assert sum(climb(TIMES, values, least=3) is not None for values in found) < 0.02 * ROUNDS
    if noise not in ("random walk", "skewed", "one step"):  # heavy tails and steps have peaks
        assert not any(episodes(values, least=3) for values in found)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_random_failures_have_bursts_in_under_two_percent(rate: float) -> None:
    dice = np.random.default_rng(20_26)
    alarms = 0
    for _ in range(ROUNDS):
        ended = dice.poisson(np.where(dice.random(500) < 0.1, 20.0, 1.0)).astype(float)
        alarms += burst(dice.binomial(ended.astype(int), rate).astype(float), ended) is not None
    assert alarms < 0.02 * ROUNDS


def test_changes_above_noise_are_found() -> None:
    dice = np.random.default_rng(20_26)
    climbs = bursts = 0
    for _ in range(ROUNDS):
        ramp = 40 * np.clip((np.arange(N) - 100) / 150, 0, 1)
        climbs += climb(TIMES, 50 + ramp + dice.normal(size=N), least=3) is not None
        ended = np.full(500, 2.0)
        failed = dice.binomial(2, 0.02, 500).astype(float)
        failed[300:305] = 2.0
        bursts += burst(failed, ended) is not None
    assert climbs > 0.95 * ROUNDS
    assert bursts > 0.95 * ROUNDS
