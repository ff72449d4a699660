"""The task that this process runs, and `progress()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openruntime_jupyter.operations.context import TaskContext

_current: TaskContext | None = None


def current() -> TaskContext | None:
    """Return the task that this process runs now, or None."""
    return _current


def set_current(context: TaskContext | None) -> None:
    """Set the task for which `progress()` reports."""
    global _current
    _current = context


def progress(n: float, total: float | None = None, message: str | None = None) -> None:
    """Report the progress of this task to the notebook, the dashboard and the API.

    Does nothing outside of a task.

    Parameters
    ----------
    n : work done so far, in any unit
    total : total work in the same unit; None if unknown
    message : short status text
    """
    if (context := current()) is not None:
        context.progress(n, total, message)
