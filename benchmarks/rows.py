"""What a benchmark returns: a figure of ours beside one of a peer's from the same run, and the ratio that is aimed at."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`ratio` is ours to the peer's; `reach` says what it should be, and `met` whether it is."""

    what: str
    ours: str
    peer: str
    ratio: float
    reach: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.ours} | {self.peer} | {self.ratio:.2f} | {self.reach} | {'yes' if self.met else 'NO'} |"


class Missing(Exception):
    """This machine lacks what a benchmark needs; the message says what, and how to get it."""


def not_measured(what: str, problem: object) -> str:
    """The line in place of what could not be measured."""
    return f"| {what} | not measured: {problem} | | | | |"


HEAD = "| what | ours (median) | peer (median) | ratio | reach | met |\n| --- | --- | --- | --- | --- | --- |"


def at_most(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """A row where less is better."""
    return Row(what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"≤ {reach:g}", ours / peer <= reach)


def at_least(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """A row where more is better."""
    return Row(what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"≥ {reach:g}", ours / peer >= reach)


def added(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """A row where what is between the two counts."""
    more = ours - peer
    return Row(what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"{more:+,.3g} {unit}, ≤ {reach:g}", more <= reach)


def within(what: str, figure: float, bound: float, unit: str) -> Row:
    """A row against a fixed bound."""
    return Row(what, f"{figure:,.4g} {unit}", "", figure / bound, f"≤ {bound:g} {unit}", figure <= bound)


def seconds(work: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` calls took."""
    found = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return found


def median(figures: Sequence[float]) -> float:
    """The figure to quote: these machines are shared, so neither the best nor the mean says much."""
    return statistics.median(figures)
