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
    meaning: str


FIGURES: tuple[Figure, ...] = (
    Figure("gpu_utilization", "percent", Aggregation.MACHINE, "Mean GPU utilization; 0 without a GPU."),
    Figure("gpu_memory", "bytes", Aggregation.MACHINE, "Used memory of all GPUs, if it can be read."),
    Figure("memory_usage", "percent", Aggregation.MACHINE, "Used memory of the machine or the container."),
    Figure("cpu_utilization", "percent", Aggregation.MACHINE, "Utilization of all cores."),
    Figure("active_tasks", "tasks", Aggregation.LEVEL, "Running tasks."),
    Figure("pending_tasks", "tasks", Aggregation.LEVEL, "Pending tasks."),
    Figure("worker_memory", "bytes", Aggregation.LEVEL, "Resident memory of all workers."),
    Figure("queue_time", "seconds", Aggregation.TASK, "Time from submission to the first start."),
    Figure("run_time", "seconds", Aggregation.TASK, "Time from the last start to the end."),
    Figure("mlx_memory", "bytes", Aggregation.TASK, "Peak of MLX's own allocations in a task."),
    Figure("completed_tasks", "tasks", Aggregation.COUNT, "Number of completed tasks."),
    Figure("failed_tasks", "tasks", Aggregation.COUNT, "Number of failed tasks."),
    Figure("cancelled_tasks", "tasks", Aggregation.COUNT, "Number of cancelled tasks."),
    Figure("timed_out_tasks", "tasks", Aggregation.COUNT, "Number of tasks that timed out."),
    Figure("interrupted_tasks", "tasks", Aggregation.COUNT, "Number of interrupted tasks, except those of a runtime that was killed."),
)

ENDED_AS = {state: f"{state}_tasks" for state in TaskState if state.terminal}
"""Name of the metric that counts the tasks that ended in a state."""


def of_kind(*kinds: Aggregation) -> tuple[Figure, ...]:
    """Return the metrics of these kinds in order."""
    return tuple(figure for figure in FIGURES if figure.kind in kinds)


def names(figures: Sequence[Figure]) -> tuple[str, ...]:
    """Return the names of these metrics in order."""
    return tuple(figure.name for figure in figures)
