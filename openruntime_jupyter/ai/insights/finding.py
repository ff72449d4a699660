"""Findings under construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from openruntime_jupyter.ai.insights.dataset import Dataset
from openruntime_jupyter.ai.insights.formatting import called, listed, moment, seconds, size
from openruntime_jupyter.runtime.storage.insights import Ran
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.insights import Finding, FindingKind, Severity, TaskSeen

SEVERITIES: dict[Severity, float] = {"info": 0.0, "notice": 100.0, "warning": 200.0}
MOST_TASKS = 5
"""Maximum tasks of a finding."""
MOST_NAMED = 3
"""Maximum tasks named in the text of a finding."""


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
    figures: dict[str, float | None] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    at: float | None = None
    value: float | None = None
    around: Literal["time", "memory"] | None = None
    tasks: list[Ran] = field(default_factory=list)

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

    def attach(self, ran: list[Ran]) -> None:
        """Attach the related tasks among `ran`, and name them in the text."""
        assert self.start is not None
        assert self.end is not None
        start, end = self.start, self.end
        if self.around == "memory":
            self.tasks = sorted(ran, key=lambda task: -(_held(task) or 0.0))
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


Finder = Callable[[Dataset], list[FindingDraft]]
"""Function that computes one kind of finding."""


def _held(task: Ran) -> float | None:
    return max((each for each in (task.peak_memory, task.mlx_memory) if each is not None), default=None)


def _with_memory(task: Ran) -> str:
    held = _held(task)
    return called(task) if held is None else f"{called(task)[:-1]}; {size(held)} at its peak)"


def _overlap(task: Ran, start: float, end: float) -> float:
    began = start if task.started is None else task.started
    return min(end, task.finished if task.finished is not None else end) - max(start, began)


def _seen(task: Ran) -> TaskSeen:
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
