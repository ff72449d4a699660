"""Exceptions of tasks, caught as built-in exceptions."""

from __future__ import annotations

import builtins
import pickle

import pytest

from openruntime_jupyter.client.handles import as_raised
from openruntime_jupyter.errors import TaskFailed, WorkerDied
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskState

NOW = "2026-01-01T00:00:00.000000Z"
BUILT_IN = sorted(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception) and value.__name__ == name
)
NEVER = {"StopIteration", "StopAsyncIteration", "ExceptionGroup", "UnicodeDecodeError", "UnicodeEncodeError", "UnicodeTranslateError"}


def failed(kind: str | None) -> TaskFailed:
    failure = Failure(kind=FailureKind.RAISED, message="why", type=kind)
    task = Task(task_id="task_1", status=TaskState.FAILED, operation="call", timestamp=NOW, submitted_at=NOW, failure=failure)
    return TaskFailed("why\nand where", task)


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_exception_is_caught_as_such_and_travels(name: str) -> None:
    made = as_raised(failed(name))
    copy = pickle.loads(pickle.dumps(made))
    for each in (made, copy):
        assert isinstance(each, TaskFailed)
        assert isinstance(each, getattr(builtins, name)) is (name not in NEVER)
        assert str(each) == "why\nand where"
        assert each.task is not None
        assert each.task.task_id == "task_1"


@pytest.mark.parametrize("name", [None, "MyOwnError", "json.JSONDecodeError", "print", "KeyboardInterrupt", "SystemExit"])
def test_any_other_stays_what_it_is(name: str | None) -> None:
    problem = failed(name)
    assert as_raised(problem) is not None
    assert type(as_raised(problem)) is TaskFailed


def test_what_is_no_exception_of_a_task_stays_the_same() -> None:
    for problem in (ValueError("mine"), WorkerDied("it died"), TaskFailed("without a record")):
        assert as_raised(problem) is problem
