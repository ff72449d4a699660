"""Which operations there are: ours, and those that other packages plug in.

A package adds one by an entry point of the group `openruntime.operations` whose value is an `Operation`.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from openruntime_jupyter.errors import UnknownOperation
from openruntime_jupyter.operations.base import Operation

GROUP = "openruntime.operations"
BUILT_IN = ("compute", "matrix_multiply", "vector_operations", "memory_bandwidth", "mlx_operation", "python", "call")

log = logging.getLogger(__name__)


@cache
def _built_in(name: str) -> Operation:
    loaded: Operation = import_module(f"openruntime_jupyter.operations.{name}").operation
    return loaded


@cache
def operations() -> dict[str, Operation]:
    """Every operation by name, ours first; one that does not load is logged and left out, and never replaces ours."""
    found: dict[str, Operation] = {}
    for name in BUILT_IN:
        found[name] = _built_in(name)
    for point in entry_points(group=GROUP):
        try:
            operation = point.load()
            if not isinstance(operation, Operation):
                raise TypeError(f"{point.value} is {type(operation).__name__}, no Operation")
        except Exception as problem:  # somebody else's package must not keep ours from starting
            log.warning("The operation %s of %s was left out: %s", point.name, point.value, problem)
            continue
        if found.setdefault(operation.name, operation) is not operation:
            log.warning("The operation %s of %s was left out: the name is taken", operation.name, point.value)
    return found


def operation(name: str) -> Operation:
    """The operation of that name; raises `UnknownOperation`, which lists the known."""
    if name in BUILT_IN:  # a worker that runs one operation loads that one
        return _built_in(name)
    known = operations()
    if name not in known:
        problem = f"there is no operation {name!r}; there are {', '.join(known)}"
        raise UnknownOperation(f"operation: {problem}", [{"field": "operation", "problem": problem}])
    return known[name]
