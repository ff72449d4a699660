"""Errors that end a cell readably: what happened in the worker, and none of the way through these files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from openruntime_jupyter.client.handle import task_error
from openruntime_jupyter.errors import OpenRuntimeError, TaskError
from openruntime_jupyter.models import Task

Error = TypeVar("Error", bound=BaseException)

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def short(error: Error, line: str | None = None, above: str | None = None) -> Error:
    """`error`, which IPython then shows as `line` (default: its message), below the text `above`, instead of a traceback.

    This is what stands in the notebook, and in the logs of programs that run notebooks.
    """
    shown = [f"{BOLD}{type(error).__name__}{PLAIN}: {line or error}"]
    if above:
        shown.insert(0, above.rstrip())
    # IPython asks the exception itself for its traceback, if it has this.
    setattr(error, "_render_traceback_", lambda: shown)  # noqa: B010  no exception declares it
    return error


@contextmanager
def shortened() -> Iterator[None]:
    """Errors of ours that come out of this block are shown without the way they took through our files."""
    try:
        yield
    except OpenRuntimeError as problem:
        if not hasattr(problem, "_render_traceback_"):
            short(problem)
        raise


def bad_end(task: Task, watched: bool) -> TaskError:
    """The error of a task that did not complete: its traceback, as the worker saw it, above one line that says how it ended.

    What the worker wrote last is added unless it was `watched`, for then it stands above already.
    """
    failure = task.failure
    above = failure.traceback or (None if watched else failure.last_output) if failure is not None else None
    return short(task_error(task), f"{(task.error or str(task.status)).rstrip('.')} ({task.task_id})", above)
