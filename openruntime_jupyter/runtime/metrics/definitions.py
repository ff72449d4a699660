"""What the metrics' history records: each figure with its unit, and what becomes of it where there are several runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from openruntime_jupyter.schemas.tasks import TaskState


class Kind(str, Enum):
    """How values of one moment, or of one stretch of time, are put together."""

    MACHINE = "machine"
    """Of the machine: every runtime measures the same thing, which is never added up."""
    LEVEL = "level"
    """Of one runtime: those of several runtimes add up."""
    TASK = "task"
    """One value a task, at its start or end."""
    COUNT = "count"
    """How many tasks."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of the history."""

    name: str
    unit: Literal["percent", "bytes", "tasks", "seconds"]
    kind: Kind


FIGURES: tuple[Figure, ...] = (
    Figure("gpu_utilization", "percent", Kind.MACHINE),
    Figure("gpu_memory", "bytes", Kind.MACHINE),
    Figure("memory_usage", "percent", Kind.MACHINE),
    Figure("cpu_utilization", "percent", Kind.MACHINE),
    Figure("active_tasks", "tasks", Kind.LEVEL),
    Figure("pending_tasks", "tasks", Kind.LEVEL),
    Figure("worker_memory", "bytes", Kind.LEVEL),
    Figure("queue_time", "seconds", Kind.TASK),
    Figure("run_time", "seconds", Kind.TASK),
    Figure("mlx_memory", "bytes", Kind.TASK),
    Figure("completed_tasks", "tasks", Kind.COUNT),
    Figure("failed_tasks", "tasks", Kind.COUNT),
    Figure("cancelled_tasks", "tasks", Kind.COUNT),
    Figure("timed_out_tasks", "tasks", Kind.COUNT),
    Figure("interrupted_tasks", "tasks", Kind.COUNT),
)

ENDED_AS = {state: f"{state}_tasks" for state in TaskState if state.terminal}
"""The figure that counts the tasks that ended in a state."""


def of_kind(*kinds: Kind) -> tuple[Figure, ...]:
    """The figures of these kinds, in their order."""
    return tuple(figure for figure in FIGURES if figure.kind in kinds)


def names(figures: Sequence[Figure]) -> tuple[str, ...]:
    """What they are called, in their order."""
    return tuple(figure.name for figure in figures)
