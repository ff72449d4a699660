"""What the package offers by name: a name that comes, goes or moves is a decision, so it changes this test."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import pytest

import openruntime_jupyter
from openruntime_jupyter import errors, operations, schemas
from openruntime_jupyter.schemas.base import Wire
from openruntime_jupyter.schemas.tasks import Task, TaskState

OFFERED = {"Dashboard", "connect", "progress", "load_ipython_extension", "unload_ipython_extension"}
ERRORS = {
    "ArrayConflict",
    "ArrayNotFound",
    "BodyTooLarge",
    "EngineError",
    "InterpreterError",
    "InvalidRequest",
    "MalformedRequest",
    "MapFailed",
    "MemoryRefused",
    "NoBackend",
    "NotAllowed",
    "KeyMissing",
    "NotConnected",
    "OpenRuntimeError",
    "ProviderBroken",
    "ProviderBusy",
    "ProviderError",
    "ProviderRefused",
    "ProviderUnreachable",
    "QueueFull",
    "RateLimited",
    "Stopping",
    "StorageUnavailable",
    "TaskCancelled",
    "TaskConflict",
    "TaskError",
    "TaskFailed",
    "TaskInterrupted",
    "SessionEnded",
    "SessionNotFound",
    "TaskNotFound",
    "ModelNotFound",
    "PullFailed",
    "ConversationNotFound",
    "TaskTimedOut",
    "Unavailable",
    "UnknownDevice",
    "UnknownOperation",
    "WorkerDied",
    "WouldDeadlock",
}


def test_the_package_offers_these_names_and_no_others() -> None:
    assert set(openruntime_jupyter._WHERE) == OFFERED
    assert set(dir(openruntime_jupyter)) >= {*OFFERED, "__version__"}


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_a_name_that_is_offered_can_be_called_and_is_documented(name: str) -> None:
    offered = getattr(openruntime_jupyter, name)
    assert callable(offered)
    assert inspect.getdoc(offered)


def test_the_author_of_an_operation_finds_these_names_and_no_others() -> None:
    assert set(operations.__all__) == {"ArrayRef", "Operation", "Parameters", "Result", "World"}
    assert all(inspect.getdoc(getattr(operations, name)) for name in operations.__all__)


def test_a_name_that_is_not_offered_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        openruntime_jupyter.no_such_name  # noqa: B018


def test_jupyter_server_finds_its_extension() -> None:
    (point,) = openruntime_jupyter._jupyter_server_extension_points()
    assert point["app"].__module__ == point["module"]


def test_the_error_tree_is_drawn_as_it_is() -> None:
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert set(found) == ERRORS
    drawn = inspect.getdoc(errors) or ""
    parents: list[str] = []
    missing = set(found)
    for line in drawn.splitlines():
        name = next((word for word in line.replace("│", " ").replace("├──", " ").replace("└──", " ").split() if word in found), None)
        if name is None or not (line.startswith(("OpenRuntimeError", "├", "│", "└"))):
            continue
        depth = line.index(name) // 4
        del parents[depth:]
        assert [base.__name__ for base in found[name].__bases__][:1] == (parents[-1:] or ["Exception"])
        parents.append(name)
        missing.remove(name)
    assert not missing


def test_every_wire_type_refuses_fields_that_it_does_not_know() -> None:
    modules = [import_module(found.name) for found in pkgutil.iter_modules(schemas.__path__, f"{schemas.__name__}.")]
    wire = {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Wire)}
    assert len(wire) > 50
    assert not [kind.__name__ for kind in wire if kind.model_config.get("extra") != "forbid"]


def test_the_record_of_a_task_says_on_a_line_or_two_what_is_not_as_usual() -> None:
    now = "2026-01-01T00:00:00.000000Z"
    task = Task(
        task_id="task_1",
        status=TaskState.FAILED,
        operation="call",
        timestamp=now,
        submitted_at=now,
        parameters={"pickled": 10_000 * "x"},
    )
    assert repr(task) == f"Task(task_id='task_1', status='failed', operation='call', timestamp='{now}', submitted_at='{now}')"
