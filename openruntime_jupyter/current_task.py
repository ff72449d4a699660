"""The task that this process runs, and `progress()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext

_current: TaskContext | None = None


def current() -> TaskContext | None:
    """Return the task that this process runs now, or None."""
    return _current


def set_current(context: TaskContext | None) -> None:
    """Make `context` the one that `progress()` speaks for."""
    global _current
    _current = context


def progress(n: float, total: float | None = None, message: str | None = None) -> None:
    """Tell the notebook, the dashboard and the API how far this task is.

    `n` of `total` (any unit; `total` may be unknown), with a short message. Outside of a task it does nothing, so that code
    which calls it runs anywhere.
    """
    if (context := current()) is not None:
        context.progress(n, total, message)
