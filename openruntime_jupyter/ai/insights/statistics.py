"""Robust statistics for noisy, non-normal time series with gaps. Pure functions; times are in seconds.

Metrics of a machine are autocorrelated, so tests that assume independent neighbours find trends everywhere. A reported rise must
therefore be a trend against two null hypotheses: noise around a constant level, and a random walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

MAD_TO_SIGMA = 1.4826
"""Factor from the median absolute deviation to the standard deviation of a normal distribution."""
MEAN_DEVIATION_TO_SIGMA = 1.2533
"""Factor from the mean absolute deviation to the standard deviation of a normal distribution."""

BLOCKS = 24
"""Number of block medians per tested interval. Neighbours within a block are correlated."""
LEAST_BLOCKS = 12
FEW = 6
"""Number of high values that are always treated as exceptions, not as a second mode, regardless of the sample size."""
CHANCE = 0.001
"""Significance level."""
CHANCE_OF_CLIMB = 0.00025
"""Significance level of an interval selected among many. Monotonic steps reach it from 16 blocks on."""


def tail(z: float) -> float:
    """Return the two-sided tail probability of a normal value at `z` standard deviations."""
    return math.erfc(abs(z) / math.sqrt(2))


def robust_scale(values: Array) -> tuple[float, float]:
    """Return the median and a robust standard deviation.

    The scale is the median absolute deviation times 1.4826, or, if more than half of the values are equal, the mean absolute
    deviation times 1.2533 (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993).
    """
    center = float(np.median(values))
    away = np.abs(values - center)
    mad = float(np.median(away))
    return center, MAD_TO_SIGMA * mad if mad > 0 else MEAN_DEVIATION_TO_SIGMA * float(away.mean())


@dataclass(frozen=True, slots=True)
class Episode:
    """Neighbouring values far above the rest, as indices of the first, last and highest value."""

    first: int
    last: int
    top: int


def episodes(values: Array, *, least: float, sigmas: float = 6.0, rare: float = 0.1) -> list[Episode]:
    """Return the episodes of high outliers in `values`, highest first.

    An outlier is `sigmas` robust standard deviations and at least `least` above the median. If there are more than `FEW` outliers and
    more than the share `rare` of all values, they are a second mode and not exceptions, and nothing is returned. NaN is a gap, which
    does not end an episode. With 6 sigmas a normal value is an outlier once in 10^9; the median and its deviation tolerate up to half
    of the values being wrong (Hampel, The Influence Curve and its Role in Robust Estimation, 1974).
    """
    known = values[~np.isnan(values)]
    if known.size == 0:
        return []
    center, sigma = robust_scale(known)
    out = np.flatnonzero(values > center + max(sigmas * sigma, least))
    if out.size == 0 or out.size > max(FEW, rare * known.size):
        return []
    # A single normal value between two outliers does not split an episode.
    groups = np.split(out, np.flatnonzero(np.diff(out) > 2) + 1)
    found = [Episode(int(group[0]), int(group[-1]), int(group[np.argmax(values[group])])) for group in groups]
    return sorted(found, key=lambda each: -values[each.top])


def blocks(times: Array, values: Array, number: int = BLOCKS) -> tuple[Array, Array]:
    """Return at most `number` medians of equal-sized blocks in time order, with the medians of their times. Skips gaps."""
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    parts = min(number, values.size)
    if parts == values.size:
        return times, values
    medians = [np.array([median(part.tolist()) for part in np.array_split(column, parts)]) for column in (times, values)]
    return medians[0], medians[1]


def theil_sen(times: Array, values: Array) -> tuple[float, float]:
    """Return the slope, in units per second, and the value at the first of `times`, of the Theil-Sen line.

    The slope is the median of the slopes of all pairs (Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, JASA
    1968), which tolerates 29 % of the values being wrong.
    """
    first, second = np.triu_indices(values.size, 1)
    apart = times[second] - times[first]
    slopes = (values[second] - values[first])[apart > 0] / apart[apart > 0]
    slope = float(np.median(slopes)) if slopes.size else 0.0
    return slope, float(np.median(values - slope * (times - times[0])))


def mann_kendall(values: Array) -> tuple[float, float]:
    """Return Kendall's tau of `values` against their order, -1 to 1, and its p-value for independent values.

    Normal approximation, corrected for ties (Mann, Nonparametric Tests Against Trend, 1945; Kendall, Rank Correlation Methods, 1975).
    """
    n = values.size
    first, second = np.triu_indices(n, 1)
    s = float(np.sign(values[second] - values[first]).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 0.0, 1.0
    return s / (n * (n - 1) / 2), tail(max(0.0, abs(s) - 1) / math.sqrt(variance))


def drift(values: Array) -> float:
    """Return the p-value of `values` moving this steadily in one direction under a random walk with symmetric steps.

    Wilcoxon's signed ranks of the steps from value to value, normal approximation (Wilcoxon, Individual Comparisons by Ranking
    Methods, 1945). Steps of pure noise alternate, which makes the test stricter for noise.
    """
    steps = np.diff(values)
    steps = steps[steps != 0]
    if steps.size == 0:
        return 1.0
    ranks = ranked(np.abs(steps))
    return tail(float((np.sign(steps) * ranks).sum()) / math.sqrt(float((ranks**2).sum())))


def ranked(values: Array) -> Array:
    """Return the ranks of `values` from 1 on. Ties get their mean rank."""
    ordered = np.sort(values)
    ranks: Array = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2
    return ranks


@dataclass(frozen=True, slots=True)
class Line:
    """Straight line from `begin` to `end`, with the values at both and Kendall's tau."""

    begin: float
    end: float
    at_begin: float
    at_end: float
    tau: float

    @property
    def rise(self) -> float:
        """Return the change of the value."""
        return self.at_end - self.at_begin

    @property
    def slope(self) -> float:
        """Return the slope in units per second."""
        return self.rise / (self.end - self.begin)


def trend(times: Array, values: Array, chance: float = CHANCE) -> Line | None:
    """Return the trend line over all values, or None if it is not significant or there are too few values.

    It must be significant against noise (`mann_kendall`) and against a random walk (`drift`). If a single step makes up half of it,
    it is a change of level and not a trend. The line comes from `theil_sen`.
    """
    x, y = blocks(times, values)
    if x.size < LEAST_BLOCKS:
        return None
    tau, noise = mann_kendall(y)
    if max(noise, drift(y)) > chance:
        return None
    slope, start = theil_sen(x, y)
    line = Line(float(x[0]), float(x[-1]), start, start + slope * float(x[-1] - x[0]), tau)
    steps = np.diff(y) * np.sign(line.rise)
    return None if line.rise == 0 or float(steps.max()) > abs(line.rise) / 2 else line


def climb(times: Array, values: Array, *, least: float, share: float = 0.15, before: Array | None = None) -> Line | None:
    """Return the largest steady rise in any interval of the values, or None.

    The search uses the medians of 96 blocks: from a low to a high, without falling back by more than a quarter of the gain. A rise
    counts if it is at least `least`, covers the `share` of the time, is a `trend`, and persists. A gradual return, or a similar
    gradual fall earlier (also in the earlier values `before`), is an oscillation. A sudden fall, as when a worker exits, is not.
    """
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    if values.size < LEAST_BLOCKS:
        return None
    x, y = blocks(times, values, 4 * BLOCKS)
    # The median of three neighbours removes single outliers, which must not start, end or interrupt a rise.
    y = np.median(sliding_window_view(np.pad(y, 1, mode="edge"), 3), axis=1)
    low, high = _largest_rise(y)
    if high <= low or y[high] - y[low] < least or x[high] - x[low] < share * (times[-1] - times[0]):
        return None
    within = (times >= x[low]) & (times <= x[high])
    line = trend(times[within], values[within], CHANCE_OF_CLIMB)
    if line is None or line.rise < least or line.tau < 0.8:
        return None
    earlier = y[: low + 1] if before is None else np.concatenate([before[~np.isnan(before)], y[: low + 1]])
    if _goes_back(earlier[::-1], line.rise) or _goes_back(y[high:], line.rise):
        return None
    return line


def _largest_rise(values: Array) -> tuple[int, int]:
    """Return the indices of the low and the high of the largest rise that never falls back by more than a quarter of its gain."""
    # Drops within the standard deviation of the steps are noise.
    noise = 3 * MAD_TO_SIGMA * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    known = values.tolist()
    largest, low, high = 0.0, 0, 0
    for start, lowest in enumerate(known):
        top = start
        for position in range(start, len(known)):
            if known[position] > known[top]:
                top = position
            elif known[top] - known[position] > max((known[top] - lowest) / 4, noise) + 1e-12:
                break
        if known[top] - lowest > largest:
            largest, low, high = known[top] - lowest, start, top
    # On level parts before and after the rise, the positions of the minimum and the maximum are arbitrary.
    high = low + int(np.argmax(values[low : high + 1] >= values[high] - noise))
    return low + int(np.flatnonzero(values[low : high + 1] <= values[low] + noise)[-1]), high


def _goes_back(values: Array, rise: float) -> bool:
    """Return whether the values, read away from the rise, gradually return by half of it or more."""
    if values.size < 2:
        return False
    away = np.abs(values - values[0])
    far = np.flatnonzero(away > rise / 2)
    if far.size == 0:
        # Or a return has started: by a third, with most of the steps in that direction.
        return bool(away[-1] > rise / 3 and values.size > 3 and drift(values) < 0.05)
    steps = np.abs(np.diff(values[: far[0] + 1]))
    return bool(steps.max() < rise / 3)


def rank_sum(some: Array, others: Array) -> float:
    """Return the p-value of the difference in location between two samples.

    Mann and Whitney's U with the correction for ties, normal approximation (On a Test of Whether one of Two Random Variables is
    Stochastically Larger than the Other, 1947).
    """
    n, m = some.size, others.size
    together = np.concatenate([some, others])
    ranks = ranked(together)
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    _, ties = np.unique(together, return_counts=True)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return 1.0 if variance <= 0 else tail((u - n * m / 2) / math.sqrt(variance))


@dataclass(frozen=True, slots=True)
class Burst:
    """Interval of indices (inclusive) with a higher failure rate than the rest."""

    first: int
    last: int
    failed: float
    ended: float


def burst(failed: Array, ended: Array, *, least: float = 5.0, score: float = 12.0) -> Burst | None:
    """Return the interval with the highest density of failures, or None if the distribution may be random. `ended` includes `failed`.

    The density is relative to ended tasks and not to time, because more failures are expected when more tasks run. The score is the
    logarithm of the likelihood ratio of Kulldorff's scan for 0 and 1 (A Spatial Scan Statistic, 1997). For a given interval, a score of
    12 has a probability of 1e-6 (twice the score follows chi-square with one degree of freedom; Wilks 1938), for the 10^4 tested
    intervals at most 1e-2. The interval has at least `least` failures and covers at most half of the indices.
    """
    positions = np.flatnonzero(failed > 0)
    if positions.size == 0:
        return None
    all_failed, all_ended = float(failed.sum()), float(ended.sum())
    f = np.concatenate([[0.0], np.cumsum(failed)])
    n = np.concatenate([[0.0], np.cumsum(ended)])
    inside = f[positions[None, :] + 1] - f[positions[:, None]]
    size = n[positions[None, :] + 1] - n[positions[:, None]]
    length = positions[None, :] - positions[:, None] + 1
    ratio = _log_likelihood(inside, size) + _log_likelihood(all_failed - inside, all_ended - size)
    ratio -= _log_likelihood(np.array(all_failed), np.array(all_ended))
    # The highest density, ignoring empty intervals.
    with np.errstate(divide="ignore", invalid="ignore"):
        denser = inside / size > np.where(all_ended > size, (all_failed - inside) / (all_ended - size), np.inf)
    ratio = np.where(denser & (inside >= least) & (length > 0) & (length <= max(1, failed.size // 2)), ratio, -np.inf)
    first, last = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    if ratio[first, last] < score:
        return None
    return Burst(int(positions[first]), int(positions[last]), float(inside[first, last]), float(size[first, last]))


def _log_likelihood(failed: Array, ended: Array) -> Array:
    """Return the log-likelihood of `failed` among `ended` at the maximum-likelihood rate."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = failed * np.log(failed / ended) + (ended - failed) * np.log1p(-failed / ended)
    # With no failures or only failures, the rate is 0 or 1 and the likelihood is 1.
    return np.where((failed <= 0) | (failed >= ended), 0.0, found)
