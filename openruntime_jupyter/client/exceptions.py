"""Exceptions of tasks as built-in exceptions, so that callers can write `except ZeroDivisionError`."""

from __future__ import annotations

import builtins
from functools import cache

from openruntime_jupyter.errors import TaskFailed
from openruntime_jupyter.schemas.tasks import Task

SPECIAL = (StopIteration, StopAsyncIteration)
"""Exceptions that control iteration: raised from a future they would end a loop."""


def as_raised(problem: BaseException) -> BaseException:
    """Return a `TaskFailed` as an exception that is also an instance of the built-in exception that the task raised.

    Other exceptions are returned unchanged. Only class and message are kept, not attributes such as `errno`.
    """
    if type(problem) is not TaskFailed or problem.task is None or problem.task.failure is None:
        return problem
    return _made(problem.task.failure.type or "", str(problem), problem.task)


def _made(name: str, message: str, task: Task | None) -> TaskFailed:
    return _combined(name)(message, task)


@cache
def _combined(name: str) -> type[TaskFailed]:
    """Return a subclass of `TaskFailed` and of the built-in exception `name`, or `TaskFailed` if none can be made."""
    raised = getattr(builtins, name, None)
    if not isinstance(raised, type) or not issubclass(raised, Exception) or issubclass(raised, SPECIAL):
        return TaskFailed
    members = {"__doc__": TaskFailed.__doc__, "__reduce__": _reduced(name), "__str__": _message}
    combined = type(TaskFailed.__name__, (TaskFailed, raised), members)
    try:
        combined("", None)
    except TypeError:  # some, such as UnicodeDecodeError, need arguments that stayed in the worker
        return TaskFailed
    return combined


def _message(problem: TaskFailed) -> str:
    return str(problem.args[0])  # some, such as KeyError, format the message with repr


def _reduced(name: str) -> object:
    return lambda problem: (_made, (name, str(problem), problem.task))
