"""Formatting of numbers, times and tasks for readers."""

from __future__ import annotations

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.storage.insights import Ran
from openruntime_jupyter.schemas.base import timestamp

DAY = 86_400
TIMEFRAME_WORDS = {
    "5m": "last 5 minutes",
    "15m": "last 15 minutes",
    "1h": "last hour",
    "6h": "last 6 hours",
    "24h": "last 24 hours",
    "7d": "last 7 days",
}


def number(value: float) -> str:
    """Format a number with about three digits: `1,250`, `12.5`, `1.25`, `0.13`."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 0.1 or not size else 3
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float) -> str:
    """Format a percentage: `75%`, or `7.5%` below ten."""
    return f"{value:.0f}%" if value >= 9.95 or value < 0.05 else f"{value:.1f}%"


def share(part: float, whole: float) -> str:
    """Format `part` of `whole` as a percentage. A positive part is never `0%`."""
    ratio = 100 * part / whole if whole else 0.0
    return "under 0.1%" if 0 < ratio < 0.1 else percent(ratio)


def seconds(value: float) -> str:
    """Format a duration in a suitable unit: `0.4 ms`, `350 ms`, `1.2 s`, `4.5 min`, `2.5 h`, `3 days`."""
    for unit, size in (("days", 2.0 * DAY), ("h", 5_400.0), ("min", 90.0)):
        if value >= size:
            return f"{number(value / {'days': DAY, 'h': 3600, 'min': 60}[unit])} {unit}"
    return f"{number(value)} s" if value >= 1 else f"{number(1000 * value)} ms"


def size(value: float) -> str:
    """Format a number of bytes: `2.31 GB`."""
    return gigabytes(value)


def amount(value: float, unit: str) -> str:
    """Format a value of a metric with its unit."""
    return {"percent": percent, "bytes": size, "seconds": seconds}.get(unit, number)(value)


def moment(at: float, now: float, resolution: float) -> str:
    """Format a UTC time at the known resolution, with the date unless it is today: `14:30:20Z`, `2026-01-01T14:30Z`."""
    text = timestamp(at)
    date, clock = text[:10], text[11:19] if resolution < 60 else text[11:16]
    return f"{clock}Z" if date == timestamp(now)[:10] else f"{date}T{clock}Z"


def several(count: float, word: str) -> str:
    """Format a count with its noun: `1 task`, `1,250 tasks`."""
    return f"{count:,.0f} {word}{'' if round(count) == 1 else 's'}"


def listed(parts: list[str]) -> str:
    """Join with commas and "and": `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def called(task: Ran) -> str:
    """Describe a task by id, operation, name and owner."""
    about = [f"`{task.operation}`"]
    if task.name:
        about.append(f'"{task.name}"')
    if task.owner:
        about.append(f"of {task.owner}")
    return f"{task.task_id} ({', '.join(about)})"
