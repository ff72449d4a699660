"""Operations: named kinds of work with typed parameters, one file each.

The names here are the stable API for packages with their own operations; see `docs/operations.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openruntime_jupyter.operations.arrays import ArrayRef
    from openruntime_jupyter.operations.base import Operation, Parameters, Result, World

__all__ = ["ArrayRef", "Operation", "Parameters", "Result", "World"]

# Not imported here, because every submodule imports this package first. The resulting cycle would give incomplete modules to two threads
# that enter it at different modules.
_WHERE = {name: f"{__name__}.{'arrays' if name == 'ArrayRef' else 'base'}" for name in __all__}


def __getattr__(name: str) -> Any:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
