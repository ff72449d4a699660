"""How a task stands, in words: the one place from which line, card and table take them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from openruntime_jupyter.notebook.display.format import duration, memory, number, ordinal, rough
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.tasks import Progress, Task, TaskState

WORDS: dict[TaskState, tuple[str, str, str]] = {
    # state: the sign before it, the word for it, the class of its colour
    TaskState.PENDING: ("○", "waiting", "wa"),
    TaskState.RUNNING: ("●", "running", "go"),
    TaskState.COMPLETED: ("✓", "completed", "ok"),
    TaskState.FAILED: ("✕", "failed", "no"),
    TaskState.CANCELLED: ("■", "cancelled", "m"),
    TaskState.TIMED_OUT: ("✕", "timed out", "no"),
    TaskState.INTERRUPTED: ("✕", "interrupted", "no"),
}


USUAL_PRIORITY = 5
"""The one that a task has where none was said: no word is lost on it."""


def title(task: Task) -> str:
    """What the task is called."""
    return task.name or task.operation


def phrase(task: Task) -> str:
    """The state in words: `"running"`, `"completed in 4.2 s"`, `"cancelled before it started"`."""
    word = WORDS[task.status][1]
    if not task.status.terminal:
        return word
    if task.execution_time is None:
        return word if task.status is TaskState.COMPLETED else f"{word} before it started"
    return f"{word} {'in' if task.status is TaskState.COMPLETED else 'after'} {duration(task.execution_time)}"


def state_words(task: Task) -> tuple[str, str, str]:
    """The state's sign, its phrase, and the class of its colour."""
    sign, _, colour = WORDS[task.status]
    return sign, phrase(task), colour


def fraction(task: Task) -> float | None:
    """How much of the task is done, from 0 to 1; None where it does not say."""
    if task.status is TaskState.COMPLETED:
        return 1.0
    progress = task.progress
    if progress is None or not progress.total:
        return None
    return min(1.0, max(0.0, progress.n / progress.total))


def details(task: Task, devices: Mapping[str, str], live: bool = True) -> list[str]:
    """What else there is to say of it, most urgent first; `devices` gives names for ids.

    `live` False leaves out how long it has run so far, which is wrong as soon as it stands still.
    """
    said: list[str | None] = []
    if task.status is TaskState.PENDING:
        said += _waiting(task)
    if not task.status.terminal and task.progress is not None:
        said += _progress(task.progress)
    if live and task.status is TaskState.RUNNING and task.execution_time is not None:
        said.append(duration(task.execution_time))
    if task.session_name:
        said.append(f"session {task.session_name}")
    if task.attempt > 1:
        said.append(f"attempt {task.attempt}")
    if task.device_used:
        said.append(devices.get(task.device_used, task.device_used))
    said.append(memory(task))
    return [part for part in said if part]


def _waiting(task: Task) -> list[str | None]:
    starts = epoch(task.estimated_start)
    left = starts - time.time() if starts is not None else None
    return [
        ordinal(task.position) if task.position else None,
        f"for {task.waiting_for.removeprefix('for ')}" if task.waiting_for else None,
        f"starts in about {rough(left)}" if left is not None and left > 0.5 else None,
        f"priority {task.priority}" if task.priority != USUAL_PRIORITY else None,
    ]


def _progress(progress: Progress) -> list[str | None]:
    if progress.total:
        done = f"{progress.n / progress.total:.0%} ({number(progress.n)} of {number(progress.total)})"
    else:
        done = f"{number(progress.n)} done"
    left = f"about {rough(progress.remaining)} left" if progress.remaining else None
    return [done, left, progress.message]  # a message may be long, and is what is cut off then
