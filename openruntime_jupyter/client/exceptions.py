"""What a task raised, for code that knows nothing of tasks and has an `except ZeroDivisionError`."""

from __future__ import annotations

import builtins
from functools import cache

from openruntime_jupyter.errors import TaskFailed
from openruntime_jupyter.schemas.tasks import Task

SPECIAL = (StopIteration, StopAsyncIteration)
"""Those that Python itself waits for: out of a future they would end a loop."""


def as_raised(problem: BaseException) -> BaseException:
    """`problem`, which is caught as the built-in exception that its task raised too, where it is a `TaskFailed` of one.

    Only the class and the message are the task's: attributes such as `errno` stayed in the worker.
    """
    if type(problem) is not TaskFailed or problem.task is None or problem.task.failure is None:
        return problem
    return _made(problem.task.failure.type or "", str(problem), problem.task)


def _made(name: str, message: str, task: Task | None) -> TaskFailed:
    return _both(name)(message, task)


@cache
def _both(name: str) -> type[TaskFailed]:
    """`TaskFailed`, and the built-in exception of that name where there is one that can be both."""
    raised = getattr(builtins, name, None)
    if not isinstance(raised, type) or not issubclass(raised, Exception) or issubclass(raised, SPECIAL):
        return TaskFailed
    members = {"__doc__": TaskFailed.__doc__, "__reduce__": _reduced(name), "__str__": _said}
    both = type(TaskFailed.__name__, (TaskFailed, raised), members)
    try:
        both("", None)
    except TypeError:  # some, such as UnicodeDecodeError, must be made of what stayed in the worker
        return TaskFailed
    return both


def _said(problem: TaskFailed) -> str:
    return str(problem.args[0])  # some, such as KeyError, would show its repr


def _reduced(name: str) -> object:
    return lambda problem: (_made, (name, str(problem), problem.task))
