"""Arrays among an operation's parameters: by reference, `{"array": "<id>"}`, since they travel by files and never as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr

from openruntime_jupyter.operations.base import Parameters


class ArrayRef(Parameters):
    """An array that lies in the spool. An operation may have it as a parameter, and gets its value by `context.array(ref.array)`.

    `shape`, `dtype` and `nbytes` are known wherever `memory`, `seconds` and `run` are called: the runtime has looked them up.
    """

    array: str = Field(description="The array's id.", min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    _found: tuple[tuple[int, ...], str, int] | None = PrivateAttr(None)

    def resolve(self, shape: tuple[int, ...], dtype: str, nbytes: int) -> None:
        """Tell what it is; sizes in bytes."""
        self._found = (shape, dtype, nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Empty as long as it was not looked up."""
        return self._found[0] if self._found is not None else ()

    @property
    def dtype(self) -> str:
        """As MLX calls it; empty as long as it was not looked up."""
        return self._found[1] if self._found is not None else ""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; 0 as long as it was not looked up."""
        return self._found[2] if self._found is not None else 0

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def reference(value: Any) -> Any:
    """`value` as an `ArrayRef` where it is `{"array": text}` and nothing else; else as it is."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("array"), str):
        return ArrayRef.model_validate(value)
    return value


_HOLDERS = (BaseModel, dict, list, tuple)
"""What may have references in it; most parameters are numbers, and millions of them may lie in a list."""


def references(value: BaseModel | dict[str, Any] | list[Any] | tuple[Any, ...]) -> Iterator[ArrayRef]:
    """Every reference in validated parameters, in the order in which they stand there."""
    if isinstance(value, ArrayRef):
        yield value
        return
    parts = vars(value).values() if isinstance(value, BaseModel) else value.values() if isinstance(value, dict) else value
    for each in parts:
        if each and isinstance(each, _HOLDERS):
            yield from references(each)
