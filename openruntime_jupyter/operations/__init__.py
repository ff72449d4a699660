"""Named kinds of work with typed parameters: one file an operation.

What a package that brings an operation of its own imports is offered here, and stays: see `docs/operations.md`.
"""

from __future__ import annotations

from openruntime_jupyter.operations.arrays import ArrayRef
from openruntime_jupyter.operations.base import Operation, Parameters, Result, World

__all__ = ["ArrayRef", "Operation", "Parameters", "Result", "World"]
