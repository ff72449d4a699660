"""Formatting of numbers and times for people."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import PurePath
from typing import Any

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.system import Device
from openruntime_jupyter.schemas.tasks import Task

UNITS = {"gflops": "GFLOP/s", "gb_per_second": "GB/s", "flops_per_iteration": "FLOP", "size_mb": "MB", "tokens_per_second": "tokens/s"}
"""Units by the names of result fields. The suffix `_best` marks the value of the best iteration."""


def duration(seconds: float | None) -> str:
    """Return `seconds` in a suitable unit: `"640 µs"`, `"83 ms"`, `"4.2 s"`, `"3 min 20 s"`, `"2 h 5 min"`; a dash for None."""
    if seconds is None:
        return "—"
    for bound, factor, unit in ((1e-3, 1e6, "µs"), (0.9995, 1e3, "ms")):
        if seconds < bound:
            return f"{seconds * factor:.0f} {unit}"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def device_name(device: Device) -> str:
    """Return the name of a device, with its host if it is on another machine: `"Apple M3 Max on mac2"`."""
    host = device.id.rpartition(".")[0]
    return f"{device.name} on {host}" if host else device.name


def rough(seconds: float) -> str:
    """Return an estimate in whole seconds, at least one: `"7 s"`."""
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 60 else duration(whole)


def as_of(seen_at: float | None = None) -> str:
    """Return the local time at which a state was read (default: now), with its date: `"as of 30 Nov 01:17"`.

    Views show it beside every state that is not final, because a saved notebook keeps the view as it was.
    """
    seen = datetime.fromtimestamp(time.time() if seen_at is None else seen_at).astimezone()
    return f"as of {seen.day} {seen:%b %H:%M}"


def shortened(text: str, most: int) -> str:
    """Return `text` with at most `most` characters, cut in the middle, because messages often end with their figures."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 1].rstrip()}…{text[-end:].lstrip()}"


def clock(timestamp: str | None) -> str:
    """Return a `Timestamp` as local time, with the date unless it is today; a dash for None."""
    seconds = epoch(timestamp)
    if seconds is None:
        return "—"
    there = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.now().astimezone().date()
    return there.strftime("%H:%M:%S" if there.date() == today else "%Y-%m-%d %H:%M")


UTC = re.compile(r'"[^"]*"|(?:(?P<date>\d{4}-\d\d-\d\d)T|\b)(?P<time>\d\d:\d\d(?::\d\d)?)Z')
"""A time of day in insights, with its date if that differs from the report's. Quoted text is matched first and left unchanged."""


def local_times(text: str, reported_at: str) -> str:
    """Return a report made at `reported_at` with its UTC times converted to local time."""

    def local(found: re.Match[str]) -> str:
        if found["time"] is None:
            return found[0]
        there = datetime.fromisoformat(f"{found['date'] or reported_at[:10]}T{found['time']}+00:00").astimezone()
        time = there.strftime("%H:%M:%S"[: len(found["time"])])
        return time if there.date() == datetime.now().astimezone().date() else f"{there:%Y-%m-%d} {time}"

    return UTC.sub(local, text)


def number(value: Any) -> str:
    """Return a number with at most four significant digits: `"12,345"`, `"0.1235"`, `"1.235e-07"`; `str()` of anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"


def with_unit(name: str, value: Any) -> str | None:
    """Return the result field `name` with its unit: `"529 µs"`, `"53.9 GFLOP/s"`, `"1.2 MB"`; None without a unit."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if name.startswith("seconds"):
        factor, of_time = next(((factor, name) for factor, name in ((1, "s"), (1e3, "ms")) if value * factor >= 1), (1e6, "µs"))
        return f"{value * factor:.3g} {of_time}" if value < 60 else duration(value)
    if name.startswith("bytes_") or name in ("nbytes", "memory_estimate"):
        return gigabytes(round(value))
    unit = UNITS.get(name.removesuffix("_best"))
    return f"{number(value)} {unit}" if unit else None


def unit_head(name: str) -> str:
    """Return the heading of a column: the unit if there is one, else the name."""
    unit = UNITS.get(name.removesuffix("_best"))
    return f"{unit}{', best' if name.endswith('_best') else ''}" if unit else name.replace("_", " ")


def counted(count: int, noun: str) -> str:
    """Return a number of things: `"1 line"`, `"1,200 lines"`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def ordinal(position: int) -> str:
    """Return a queue position in words: `"next in line"`, `"2nd in line"`, `"13th in line"`."""
    if position == 1:
        return "next in line"
    ending = "th" if 10 <= position % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(position % 10, "th")
    return f"{position:,}{ending} in line"


def file_name(path: str | None) -> str:
    """Return the name of a file, such as a notebook; an empty text for None."""
    return PurePath(path).name if path else ""


def memory(task: Task) -> str | None:
    """Return the peak memory of a task, or None if it was not measured."""
    metrics = task.performance_metrics
    if metrics.memory_used_mb:
        return f"{gigabytes(metrics.memory_used_mb * 1e6)} of arrays"
    return f"{gigabytes(metrics.peak_memory_mb * 1e6)} of memory" if metrics.peak_memory_mb else None
