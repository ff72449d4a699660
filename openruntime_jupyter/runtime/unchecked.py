"""Wire types made of values that the runtime itself has put there."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from openruntime_jupyter.schemas.base import Wire

Kind = TypeVar("Kind", bound=Wire)


def construct_unchecked(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """A `kind` of all its fields, which are what they should be: four are made for every task, and checking takes ten times as long."""
    made = kind.__new__(kind)
    put = object.__setattr__
    put(made, "__dict__", fields)
    put(made, "__pydantic_fields_set__", _names(kind))
    put(made, "__pydantic_extra__", None)
    put(made, "__pydantic_private__", None)
    return made


@cache  # all of a kind share one
def _names(kind: type[Wire]) -> set[str]:
    return set(kind.model_fields)
