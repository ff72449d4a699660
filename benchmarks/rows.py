"""Rows of the benchmarks: our value, that of a peer from the same run, and the target of their ratio."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Comparison of a value with that of a peer. `ratio` is ours divided by the peer's, `reach` the target, `met` true if it is reached."""

    what: str
    ours: str
    peer: str
    ratio: float
    reach: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.ours} | {self.peer} | {self.ratio:.2f} | {self.reach} | {'yes' if self.met else 'NO'} |"


class Missing(Exception):
    """Missing requirement of a benchmark; the message says how to install it."""


def require_chromium() -> None:
    """Raise `Missing` without a browser."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")):
        raise Missing("Chromium is missing: set CHROMIUM=/path/to/chromium")


def not_measured(what: str, problem: object) -> str:
    """Return the line of a benchmark that could not run."""
    return f"| {what} | not measured: {problem} | | | | |"


HEAD = "| benchmark | ours (median) | peer (median) | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |"


def at_most(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """Return a row in which less is better."""
    return Row(what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"≤ {reach:g}", ours / peer <= reach)


def at_least(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """Return a row in which more is better."""
    return Row(what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"≥ {reach:g}", ours / peer >= reach)


def added(what: str, ours: float, peer: float, reach: float, unit: str) -> Row:
    """Return a row whose target applies to the difference."""
    difference = ours - peer
    return Row(
        what, f"{ours:,.4g} {unit}", f"{peer:,.4g} {unit}", ours / peer, f"{difference:+,.3g} {unit}, ≤ {reach:g}", difference <= reach
    )


def within(what: str, value: float, bound: float, unit: str) -> Row:
    """Return a row with a fixed bound."""
    return Row(what, f"{value:,.4g} {unit}", "", value / bound if bound else value, f"≤ {bound:g} {unit}", value <= bound)


def seconds(work: Callable[[], object], times: int) -> list[float]:
    """Return the seconds of each of `times` calls."""
    found = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return found


def median(values: Sequence[float]) -> float:
    """Return the median, which is robust on shared machines."""
    return statistics.median(values)
