"""Definitions of the recorded metrics: name, unit, and aggregation over several runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from openruntime_jupyter.schemas.tasks import TaskState


class Aggregation(str, Enum):
    """Aggregation of a metric's values within a time range."""

    MACHINE = "machine"
    """State of the machine: all runtimes measure the same value, so values are not added."""
    LEVEL = "level"
    """State of one runtime: values of several runtimes are added."""
    TASK = "task"
    """One value per task, at its start or end."""
    COUNT = "count"
    """Number of tasks."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Definition of one recorded metric."""

    name: str
    unit: Literal["percent", "bytes", "tasks", "seconds"]
    kind: Aggregation


FIGURES: tuple[Figure, ...] = (
    Figure("gpu_utilization", "percent", Aggregation.MACHINE),
    Figure("gpu_memory", "bytes", Aggregation.MACHINE),
    Figure("memory_usage", "percent", Aggregation.MACHINE),
    Figure("cpu_utilization", "percent", Aggregation.MACHINE),
    Figure("active_tasks", "tasks", Aggregation.LEVEL),
    Figure("pending_tasks", "tasks", Aggregation.LEVEL),
    Figure("worker_memory", "bytes", Aggregation.LEVEL),
    Figure("queue_time", "seconds", Aggregation.TASK),
    Figure("run_time", "seconds", Aggregation.TASK),
    Figure("mlx_memory", "bytes", Aggregation.TASK),
    Figure("completed_tasks", "tasks", Aggregation.COUNT),
    Figure("failed_tasks", "tasks", Aggregation.COUNT),
    Figure("cancelled_tasks", "tasks", Aggregation.COUNT),
    Figure("timed_out_tasks", "tasks", Aggregation.COUNT),
    Figure("interrupted_tasks", "tasks", Aggregation.COUNT),
)

ENDED_AS = {state: f"{state}_tasks" for state in TaskState if state.terminal}
"""Name of the metric that counts the tasks that ended in a state."""


def of_kind(*kinds: Aggregation) -> tuple[Figure, ...]:
    """Return the metrics of these kinds in order."""
    return tuple(figure for figure in FIGURES if figure.kind in kinds)


def names(figures: Sequence[Figure]) -> tuple[str, ...]:
    """Return the names of these metrics in order."""
    return tuple(figure.name for figure in figures)
