"""References to arrays in parameters, `{"array": "<id>"}`; the arrays are sent in files and never as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from openruntime_jupyter.operations.base import Parameters


class ArrayRef(Parameters):
    """Parameter that refers to an array in the spool; `context.array(ref.array)` returns its value.

    The runtime sets `shape`, `dtype` and `nbytes` before it calls `memory`, `seconds` or `run`.
    """

    array: str = Field(description="The array's id.", min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    _layout: tuple[tuple[int, ...], str, int] | None = PrivateAttr(None)

    def resolve(self, shape: tuple[int, ...], dtype: str, nbytes: int) -> None:
        """Set shape, dtype and size in bytes of the array."""
        self._layout = (shape, dtype, nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape; empty before `resolve`."""
        return self._layout[0] if self._layout is not None else ()

    @property
    def dtype(self) -> str:
        """Return the dtype name of MLX; empty before `resolve`."""
        return self._layout[1] if self._layout is not None else ""

    @property
    def nbytes(self) -> int:
        """Return the size of the elements in bytes; 0 before `resolve`."""
        return self._layout[2] if self._layout is not None else 0

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def reference(value: Any) -> Any:
    """Convert `{"array": text}` to an `ArrayRef`; return any other value unchanged."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("array"), str):
        return ArrayRef.model_validate(value)
    return value


_HOLDERS = (BaseModel, dict, list, tuple)
"""Types that may contain references; checked first, because lists may have millions of numbers."""


def references(value: BaseModel | dict[str, Any] | list[Any] | tuple[Any, ...]) -> Iterator[ArrayRef]:
    """Yield the references in validated parameters, in order."""
    if isinstance(value, ArrayRef):
        yield value
        return
    parts = vars(value).values() if isinstance(value, BaseModel) else value.values() if isinstance(value, dict) else value
    for each in parts:
        if each and isinstance(each, _HOLDERS):
            yield from references(each)
