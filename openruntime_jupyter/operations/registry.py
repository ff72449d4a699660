"""Which operations there are: ours, and those that other packages plug in.

A package adds one by an entry point of the group `openruntime.operations` whose value is an `Operation`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module

from openruntime_jupyter.errors import UnknownOperation
from openruntime_jupyter.operations.base import Operation
from openruntime_jupyter.operations.plugins import Plugins

BUILT_IN = ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation", "python", "call", "generate", "chat")

_plugins = Plugins(BUILT_IN.__contains__)


@cache
def _built_in(name: str) -> Operation:
    loaded: Operation = import_module(f"openruntime_jupyter.operations.{name}").operation
    return loaded


def operations() -> dict[str, Operation]:
    """Every operation by name, ours first; one that does not load is logged, told by `left_out`, and never replaces ours."""
    return {**{name: _built_in(name) for name in BUILT_IN}, **_plugins.found}


def left_out() -> list[str]:
    """The entry points that are not offered, each in a sentence that says whose it is and what is wrong with it."""
    return list(_plugins.left_out.values())


def operation(name: str) -> Operation:
    """The operation of that name; raises `UnknownOperation`, which lists the known, or says why this one was left out."""
    if name in BUILT_IN:  # a worker that runs one operation loads that one
        return _built_in(name)
    found = _plugins.known(name)
    if found is None:
        why = _plugins.left_out.get(name)
        advice = why or f"there are {', '.join(operations())}; one of another package must be installed for {sys.executable}"
        problem = f"there is no operation {name!r}; {advice}"
        raise UnknownOperation(f"operation: {problem}", [{"field": "operation", "problem": problem}])
    return found
