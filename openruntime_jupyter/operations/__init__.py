"""Named kinds of work with typed parameters: one file an operation.

What a package that brings an operation of its own imports is offered here, and stays: see `docs/operations.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openruntime_jupyter.operations.arrays import ArrayRef
    from openruntime_jupyter.operations.base import Operation, Parameters, Result, World

__all__ = ["ArrayRef", "Operation", "Parameters", "Result", "World"]

# Not imported here: each submodule imports this package first, so an import of a submodule would be a cycle, and two threads that
# enter a cycle at different modules get modules that are not complete.
_WHERE = {name: f"{__name__}.{'arrays' if name == 'ArrayRef' else 'base'}" for name in __all__}


def __getattr__(name: str) -> Any:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
