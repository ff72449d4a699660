"""Findings under construction, and the format of their numbers, times and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.storage.insights import TaskRow
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.insights import Finding, FindingKind, Severity, TaskSeen

SEVERITIES: dict[Severity, float] = {"info": 0.0, "notice": 100.0, "warning": 200.0}
MOST_TASKS = 5
"""Maximum tasks of a finding."""
MOST_NAMED = 3
"""Maximum tasks named in the text of a finding."""
TIMEFRAME_WORDS = {
    "5m": "last 5 minutes",
    "15m": "last 15 minutes",
    "1h": "last hour",
    "6h": "last 6 hours",
    "24h": "last 24 hours",
    "7d": "last 7 days",
}

Figures = dict[str, float | None]
"""Numbers of a finding by name."""


@dataclass(slots=True)
class FindingDraft:
    """Finding with times in seconds since the epoch. `weight`, 0 to 99, orders findings of the same severity.

    `around` requests the tasks that ran from `start` to `end`, ordered by run time or by memory.
    """

    kind: FindingKind
    text: str
    weight: float = 50.0
    severity: Severity = "info"
    advice: str | None = None
    figure: str | None = None
    figures: Figures = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    at: float | None = None
    value: float | None = None
    around: Literal["time", "memory"] | None = None
    tasks: list[TaskRow] = field(default_factory=list)

    @property
    def rank(self) -> float:
        """Return the sort key: higher ranks come first."""
        return SEVERITIES[self.severity] + self.weight

    def finding(self) -> Finding:
        """Return the finding as a wire schema."""
        return Finding(
            kind=self.kind,
            severity=self.severity,
            text=self.text,
            advice=self.advice,
            figure=self.figure,
            figures={name: None if value is None else round(value, 6) for name, value in self.figures.items()},
            start=iso(self.start),
            end=iso(self.end),
            at=iso(self.at),
            tasks=[_seen(task) for task in self.tasks[:MOST_TASKS]],
        )

    def attach(self, ran: list[TaskRow], start: float, end: float) -> None:
        """Attach the tasks that ran from `start` to `end`, and name them in the text."""
        if self.around == "memory":
            self.tasks = sorted(ran, key=memory_of, reverse=True)
        else:
            self.tasks = sorted(ran, key=lambda task: -_overlap(task, start, end))
        if not ran:
            # Other programs can't use the workers' memory.
            self.text += " No recorded task was running" + ("." if self.figure == "worker_memory" else ": the cause is another program.")
            return
        named = [_with_memory(task) if self.around == "memory" else called(task) for task in self.tasks[:MOST_NAMED]]
        if len(ran) > len(named):
            most = "largest" if self.around == "memory" else "longest"
            self.text += f" Of the tasks running at that time, the {most} were {listed(named)}."
        else:
            self.text += f" Running at that time: {listed(named)}."


def memory_of(task: TaskRow) -> float:
    """Return the peak memory of a task in bytes; 0 if unknown."""
    return max(task.peak_memory or 0.0, task.mlx_memory or 0.0)


def _with_memory(task: TaskRow) -> str:
    peak = memory_of(task)
    return f"{called(task)[:-1]}; {gigabytes(peak)} at its peak)" if peak else called(task)


def _overlap(task: TaskRow, start: float, end: float) -> float:
    began = start if task.started is None else task.started
    return min(end, task.finished if task.finished is not None else end) - max(start, began)


def _seen(task: TaskRow) -> TaskSeen:
    return TaskSeen(
        task_id=task.task_id,
        operation=task.operation,
        name=task.name,
        owner=task.owner,
        status=task.state,
        started_at=iso(task.started),
        finished_at=iso(task.finished),
    )


def span(dataset: Dataset, start: float, end: float, resolution: float = 1.0) -> str:
    """Format an interval: `from 14:30:00Z to 14:31:10Z (70 s)`."""
    first, last = (moment(at, dataset.end, resolution) for at in (start, end))
    return f"at {first}" if first == last else f"from {first} to {last} ({seconds(end - start)})"


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
    for least, unit, size in ((2 * 86_400, "days", 86_400), (5_400, "h", 3_600), (90, "min", 60), (1, "s", 1)):
        if value >= least:
            return f"{number(value / size)} {unit}"
    return f"{number(1000 * value)} ms"


def amount(value: float, unit: str) -> str:
    """Format a value of a metric with its unit."""
    return {"percent": percent, "bytes": gigabytes, "seconds": seconds}.get(unit, number)(value)


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


def called(task: TaskRow) -> str:
    """Describe a task by id, operation, name and owner."""
    about = [f"`{task.operation}`"]
    if task.name:
        about.append(f'"{task.name}"')
    if task.owner:
        about.append(f"of {task.owner}")
    return f"{task.task_id} ({', '.join(about)})"
