"""Construction of wire types without validation, from values that the runtime created itself."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from openruntime_jupyter.schemas.base import Wire

Model = TypeVar("Model", bound=Wire)


def construct_unchecked(kind: type[Model], fields: dict[str, Any]) -> Model:
    """Return a `kind` with these fields, all of which must be given and valid.

    Four are created for every task, and validation takes ten times as long.
    """
    made = kind.__new__(kind)
    put = object.__setattr__
    put(made, "__dict__", fields)
    put(made, "__pydantic_fields_set__", _names(kind))
    put(made, "__pydantic_extra__", None)
    put(made, "__pydantic_private__", None)
    return made


@cache  # one set per type
def _names(kind: type[Wire]) -> set[str]:
    return set(kind.model_fields)
