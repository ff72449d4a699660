"""Operations: named kinds of work with typed parameters, one file each.

The names here are the stable API for packages with their own operations; see `docs/operations.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openruntime_jupyter.operations.base import ArrayRef, Operation, Parameters, Result, World

__all__ = ["ArrayRef", "Operation", "Parameters", "Result", "World"]


def __getattr__(name: str) -> Any:
    # Not imported above, because every submodule imports this package first. The resulting cycle would give incomplete modules to two
    # threads that enter it at different modules: see tests/test_imports.py.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.base"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
