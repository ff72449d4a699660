"""Test the public names of the package."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import openruntime_jupyter
from openruntime_jupyter import operations, schemas
from openruntime_jupyter.schemas.base import Wire
from openruntime_jupyter.schemas.tasks import Task, TaskState


def test_public_names_are_those_that_are_listed() -> None:
    # In its own process: other tests register operations and define errors.
    tool = str(Path(__file__).parents[1] / "tools" / "list-public-api")
    code = f"import runpy; tool = runpy.run_path({tool!r}); assert tool['PATH'].read_text() == tool['listing']()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"run `tools/list-public-api`, and mention the change in CHANGELOG.md\n{done.stderr}"


@pytest.mark.parametrize("name", sorted(openruntime_jupyter._WHERE))
def test_public_name_is_callable_and_documented(name: str) -> None:
    public = getattr(openruntime_jupyter, name)
    assert callable(public)
    assert inspect.getdoc(public)


def test_names_of_operations_package_are_documented() -> None:
    assert all(inspect.getdoc(getattr(operations, name)) for name in operations.__all__)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        openruntime_jupyter.no_such_name  # noqa: B018


def test_jupyter_server_finds_extension() -> None:
    (point,) = openruntime_jupyter._jupyter_server_extension_points()
    assert point["app"].__module__ == point["module"]


def test_wire_types_reject_unknown_fields() -> None:
    modules = [import_module(found.name) for found in pkgutil.iter_modules(schemas.__path__, f"{schemas.__name__}.")]
    wire = {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Wire)}
    assert len(wire) > 40
    assert not [kind.__name__ for kind in wire if kind.model_config.get("extra") != "forbid"]


def test_task_repr_omits_defaults_and_parameters() -> None:
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
