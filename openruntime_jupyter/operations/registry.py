"""Registry of the built-in operations and those of other packages.

A package adds an operation with an entry point of the group `openruntime.operations` whose value is an `Operation`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module

from openruntime_jupyter.errors import UnknownOperation
from openruntime_jupyter.operations.base import Operation
from openruntime_jupyter.operations.plugins import Plugins
from openruntime_jupyter.schemas.system import OperationInfo

BUILT_IN = ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation", "python", "call", "generate", "chat")

_plugins = Plugins(BUILT_IN.__contains__)


@cache
def _built_in(name: str) -> Operation:
    loaded: Operation = import_module(f"openruntime_jupyter.operations.{name}").operation
    return loaded


def operations() -> dict[str, Operation]:
    """Return all operations by name, built-in ones first. Others that fail to load are logged and listed by `left_out`."""
    return {**{name: _built_in(name) for name in BUILT_IN}, **_plugins.found}


def left_out() -> list[str]:
    """Return a message for each excluded entry point with its origin and the reason."""
    return list(_plugins.left_out.values())


def operation(name: str) -> Operation:
    """Return the operation with that name; raise `UnknownOperation` with the known names, or the reason for its exclusion."""
    if name in BUILT_IN:  # loads only that operation in a worker
        return _built_in(name)
    plugin = _plugins.known(name)
    if plugin is None:
        reason = _plugins.left_out.get(name)
        advice = reason or f"available: {', '.join(operations())}; packages with other operations must be installed for {sys.executable}"
        problem = f"unknown operation {name!r}; {advice}"
        raise UnknownOperation(f"operation: {problem}", [{"field": "operation", "problem": problem}])
    return plugin


def describe_operations() -> list[OperationInfo]:
    """Return every operation with the JSON schema of its parameters."""
    return [
        OperationInfo(
            name=kind.name, summary=kind.summary, needs_execute=kind.needs_execute, parameters_schema=kind.params.model_json_schema()
        )
        for kind in operations().values()
    ]
