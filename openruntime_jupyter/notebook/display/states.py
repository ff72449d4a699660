"""Texts for the state of a task, shared by all views."""

from __future__ import annotations

import time
from collections.abc import Mapping

from openruntime_jupyter.notebook.display.format import duration, memory, number, ordinal, rough
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.tasks import Progress, Task, TaskState

WORDS: dict[TaskState, tuple[str, str, str]] = {
    # state: sign, word, CSS class of the colour
    TaskState.PENDING: ("○", "waiting", "wa"),
    TaskState.RUNNING: ("●", "running", "go"),
    TaskState.COMPLETED: ("✓", "completed", "ok"),
    TaskState.FAILED: ("✕", "failed", "no"),
    TaskState.CANCELLED: ("■", "cancelled", "m"),
    TaskState.TIMED_OUT: ("✕", "timed out", "no"),
    TaskState.INTERRUPTED: ("✕", "interrupted", "no"),
}


DEFAULT_PRIORITY = 5
"""Default priority, which views omit."""


def title(task: Task) -> str:
    """Return the name of the task, or else its operation."""
    return task.name or task.operation


def phrase(task: Task) -> str:
    """Return the state in words: `"running"`, `"completed in 4.2 s"`, `"cancelled before it started"`."""
    word = WORDS[task.status][1]
    if not task.status.terminal:
        return word
    if task.execution_time is None:
        return word if task.status is TaskState.COMPLETED else f"{word} before it started"
    return f"{word} {'in' if task.status is TaskState.COMPLETED else 'after'} {duration(task.execution_time)}"


def state_words(task: Task) -> tuple[str, str, str]:
    """Return the state's sign, phrase, and CSS class."""
    sign, _, colour = WORDS[task.status]
    return sign, phrase(task), colour


def fraction(task: Task) -> float | None:
    """Return the progress from 0 to 1, or None if unknown."""
    if task.status is TaskState.COMPLETED:
        return 1.0
    progress = task.progress
    if progress is None or not progress.total:
        return None
    return min(1.0, max(0.0, progress.n / progress.total))


def details(task: Task, devices: Mapping[str, str], live: bool = True) -> list[str]:
    """Return further facts about the task, most important first. `devices` maps ids to names.

    `live` False omits the run time so far, which would be wrong in a view that is not updated.
    """
    parts: list[str | None] = []
    if task.status is TaskState.PENDING:
        parts += _waiting(task)
    if not task.status.terminal and task.progress is not None:
        parts += _progress(task.progress)
    if live and task.status is TaskState.RUNNING and task.execution_time is not None:
        parts.append(duration(task.execution_time))
    if task.session_name:
        parts.append(f"session {task.session_name}")
    if task.attempt > 1:
        parts.append(f"attempt {task.attempt}")
    if task.device_used:
        parts.append(devices.get(task.device_used, task.device_used))
    parts.append(memory(task))
    return [part for part in parts if part]


def _waiting(task: Task) -> list[str | None]:
    starts = epoch(task.estimated_start)
    left = starts - time.time() if starts is not None else None
    return [
        ordinal(task.position) if task.position else None,
        f"for {task.waiting_for.removeprefix('for ')}" if task.waiting_for else None,
        f"starts in about {rough(left)}" if left is not None and left > 0.5 else None,
        f"priority {task.priority}" if task.priority != DEFAULT_PRIORITY else None,
    ]


def _progress(progress: Progress) -> list[str | None]:
    if progress.total:
        done = f"{progress.n / progress.total:.0%} ({number(progress.n)} of {number(progress.total)})"
    else:
        done = f"{number(progress.n)} done"
    left = f"about {rough(progress.remaining)} left" if progress.remaining else None
    return [done, left, progress.message]  # last, since a long message is truncated
