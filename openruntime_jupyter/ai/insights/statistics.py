"""Robust statistics over figures that are noisy, have gaps and are not normal. Pure: arrays in, numbers out; times are in seconds.

A machine's figures depend on what they were a moment before, so a test that takes neighbours for independent finds trends in everything.
Whatever is said to rise here must be a trend against two kinds of chance: noise about a level, and a level that wanders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

MAD_TO_SIGMA = 1.4826
"""The median absolute deviation of a normal distribution, times this, is its standard deviation."""
MEAN_DEVIATION_TO_SIGMA = 1.2533
"""Likewise for the mean absolute deviation."""

BLOCKS = 24
"""Into how many medians a stretch is cut before it is tested: neighbours within a block tell the same."""
LEAST_BLOCKS = 12
FEW = 6
"""Values that are no second way of a figure to be, however few there are in all."""
CHANCE = 0.001
"""The probability below which something is not taken for chance."""
CHANCE_OF_CLIMB = 0.00025
"""Of a stretch that was looked for among many; steps that all go upwards reach it from 16 blocks on."""


def tail(z: float) -> float:
    """The probability that a normal value lies at least `z` standard deviations from its mean, on either side."""
    return math.erfc(abs(z) / math.sqrt(2))


def middle(values: Array) -> tuple[float, float]:
    """The median, and a standard deviation that outliers do not move.

    The scale is the median absolute deviation times 1.4826, or, where more than half of the values are equal, the mean absolute
    deviation times 1.2533 (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993).
    """
    median = float(np.median(values))
    away = np.abs(values - median)
    mad = float(np.median(away))
    return median, MAD_TO_SIGMA * mad if mad > 0 else MEAN_DEVIATION_TO_SIGMA * float(away.mean())


@dataclass(frozen=True, slots=True)
class Episode:
    """Neighbouring values far above the rest: the places of the first, the last and the highest."""

    first: int
    last: int
    top: int


def episodes(values: Array, *, least: float, sigmas: float = 6.0, rare: float = 0.1) -> list[Episode]:
    """Where `values` stand out upwards, the highest first.

    A value stands out that is `sigmas` robust standard deviations and at least `least` above the median. Where more than `FEW` values
    and more than the share `rare` of all do, they are no exceptions but a second way of the figure to be, and nothing is found. NaN is
    a gap, which ends no episode by itself. With 6 sigmas a normal value stands out once in 10^9; the median and its deviation bear up
    to half of the values being wrong (Hampel, The Influence Curve and its Role in Robust Estimation, 1974).
    """
    known = values[~np.isnan(values)]
    if known.size == 0:
        return []
    median, sigma = middle(known)
    out = np.flatnonzero(values > median + max(sigmas * sigma, least))
    if out.size == 0 or out.size > max(FEW, rare * known.size):
        return []
    # One quiet value between two high ones does not make them two.
    groups = np.split(out, np.flatnonzero(np.diff(out) > 2) + 1)
    found = [Episode(int(group[0]), int(group[-1]), int(group[np.argmax(values[group])])) for group in groups]
    return sorted(found, key=lambda each: -values[each.top])


def blocks(times: Array, values: Array, number: int = BLOCKS) -> tuple[Array, Array]:
    """At most `number` medians of as many values each, in the order of time, with the medians of their times; gaps are left out."""
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    parts = min(number, values.size)
    if parts == values.size:
        return times, values
    edges = np.linspace(0, values.size, parts + 1).astype(int)
    return _medians(times, edges), _medians(values, edges)


def _medians(values: Array, edges: NDArray[np.int_]) -> Array:
    """The median of what lies from each of `edges` to the next: all at once, since a call of NumPy's for each takes many times as long."""
    ordered = values[np.lexsort((values, np.repeat(np.arange(edges.size - 1), np.diff(edges))))]
    low, high = (edges[:-1] + edges[1:] - 1) // 2, (edges[:-1] + edges[1:]) // 2
    medians: Array = (ordered[low] + ordered[high]) / 2
    return medians


def theil_sen(times: Array, values: Array) -> tuple[float, float]:
    """The slope, in units a second, and the value at the first of `times`, of the line that Theil and Sen draw.

    The slope is the median of those of all pairs (Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, JASA 1968),
    which bears 29 % of the values being wrong.
    """
    first, second = np.triu_indices(values.size, 1)
    apart = times[second] - times[first]
    slopes = (values[second] - values[first])[apart > 0] / apart[apart > 0]
    slope = float(np.median(slopes)) if slopes.size else 0.0
    return slope, float(np.median(values - slope * (times - times[0])))


def mann_kendall(values: Array) -> tuple[float, float]:
    """Kendall's tau of `values` against their order, -1 to 1, and its probability by chance where they are independent.

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
    """The probability by chance that a level which wanders, each step up as likely as down, goes one way as steadily as `values`.

    Wilcoxon's signed ranks of the steps from value to value, normal approximation (Wilcoxon, Individual Comparisons by Ranking
    Methods, 1945). The steps of mere noise go back and forth, which makes the test stricter against it.
    """
    steps = np.diff(values)
    steps = steps[steps != 0]
    if steps.size == 0:
        return 1.0
    ranks = ranked(np.abs(steps))
    return tail(float((np.sign(steps) * ranks).sum()) / math.sqrt(float((ranks**2).sum())))


def ranked(values: Array) -> Array:
    """The ranks of `values` from 1 on; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Line:
    """A straight course from `begin` to `end`, with its value at both, and Kendall's tau."""

    begin: float
    end: float
    at_begin: float
    at_end: float
    tau: float

    @property
    def rise(self) -> float:
        """How much the value changed."""
        return self.at_end - self.at_begin

    @property
    def slope(self) -> float:
        """Units a second."""
        return self.rise / (self.end - self.begin)


def trend(times: Array, values: Array, chance: float = CHANCE) -> Line | None:
    """The line that the values follow from the first to the last; None where that may be chance, or there are too few.

    It must be a trend both against noise (`mann_kendall`) and against a level that wanders (`drift`), and no single step may make
    half of it: that is a change of level. Its course is `theil_sen`'s.
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
    """The largest steady rise within the values, which need not go on from their beginning to their end; None where there is none.

    A rise is looked for among the medians of 96 blocks: from a low to a high, never falling back by more than a quarter of what was
    gained. It counts if it is at least `least`, takes the `share` of all the time, is a `trend`, and stays: what goes back by and by,
    or came down so before (also in `before`, the values of earlier), swings. What falls at once, as when a worker ends, counts.
    """
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    if values.size < LEAST_BLOCKS:
        return None
    x, y = blocks(times, values, 4 * BLOCKS)
    # The median of three neighbours: one that is far out neither begins, nor ends, nor interrupts anything.
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
    # What the values do from one to the next anyway, as a standard deviation, is no falling back.
    noise = 3 * MAD_TO_SIGMA * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    # A row for each place where it may begin; what lies before that is as if it had been level.
    places = np.arange(values.size)
    ahead, low_values = places >= places[:, None], values[:, None]
    course = np.where(ahead, values, low_values)
    highest = np.maximum.accumulate(course, axis=1)
    fallen = highest - course > np.maximum((highest - low_values) / 4, noise) + 1e-12
    before_fall = ahead & ~np.logical_or.accumulate(fallen, axis=1)
    tops = np.argmax(np.where(before_fall, course, -np.inf), axis=1)
    low = int(np.argmax(values[tops] - values))
    top = int(tops[low])
    # Where it is level before and after, the lowest and the highest value lie anywhere in that.
    inside = values[low : top + 1]
    high = low + int(np.argmax(inside >= values[top] - noise))
    return low + int(np.flatnonzero(values[low : high + 1] <= values[low] + noise)[-1]), high


def _goes_back(values: Array, rise: float) -> bool:
    """Whether the values, read away from the rise, part from its near end by half of it or more without doing so at once."""
    if values.size < 2:
        return False
    away = np.abs(values - values[0])
    far = np.flatnonzero(away > rise / 2)
    if far.size == 0:
        # It may be on its way back, but had no time yet: a third, and most of the steps lead there.
        return bool(away[-1] > rise / 3 and values.size > 3 and drift(values) < 0.05)
    steps = np.abs(np.diff(values[: far[0] + 1]))
    return bool(steps.max() < rise / 3)


def rank_sum(some: Array, others: Array) -> float:
    """The probability by chance that values of one kind lie above or below those of the other as these do.

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
    """A stretch of places, the last included, in which more of the tasks failed than elsewhere."""

    first: int
    last: int
    failed: float
    ended: float


def burst(failed: Array, ended: Array, *, least: float = 5.0, score: float = 12.0) -> Burst | None:
    """The stretch in which failures are densest; None where they may be spread by chance.

    Among tasks that ended, not over time: where many run, many fail. The score is the logarithm of the likelihood ratio of Kulldorff's
    scan for 0 and 1 (A Spatial Scan Statistic, 1997). Of one given stretch, 12 is reached by chance once in a million times (twice the
    score follows chi-square with one degree of freedom; Wilks 1938), of the 10^4 that are looked at, once in a hundred at most.
    At least `least` must have failed in it, and it takes half of the places at most.
    """
    places = np.flatnonzero(failed > 0)
    if places.size == 0:
        return None
    all_failed, all_ended = float(failed.sum()), float(np.maximum(ended, failed).sum())
    f = np.concatenate([[0.0], np.cumsum(failed)])
    n = np.concatenate([[0.0], np.cumsum(np.maximum(ended, failed))])
    inside = f[places[None, :] + 1] - f[places[:, None]]
    size = n[places[None, :] + 1] - n[places[:, None]]
    length = places[None, :] - places[:, None] + 1
    ratio = _log_likelihood(inside, size) + _log_likelihood(all_failed - inside, all_ended - size)
    ratio -= _log_likelihood(np.array(all_failed), np.array(all_ended))
    # The densest, and not what is empty.
    with np.errstate(divide="ignore", invalid="ignore"):
        denser = inside / size > np.where(all_ended > size, (all_failed - inside) / (all_ended - size), np.inf)
    ratio = np.where(denser & (inside >= least) & (length > 0) & (length <= max(1, failed.size // 2)), ratio, -np.inf)
    first, last = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    if ratio[first, last] < score:
        return None
    return Burst(int(places[first]), int(places[last]), float(inside[first, last]), float(size[first, last]))


def _log_likelihood(failed: Array, ended: Array) -> Array:
    """Of that many of that many, at the rate which makes them likeliest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = failed * np.log(failed / ended) + (ended - failed) * np.log1p(-failed / ended)
    # No failure, or nothing but failures, is certain at a rate of 0 or 1.
    return np.where((failed <= 0) | (failed >= ended), 0.0, found)
