"""Array parameters: numbers, inline lists and generators, which the server reads and a worker builds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.operations.base import ArrayRef, Parameters, describe_error, references
from openruntime_jupyter.operations.numerics import FLOATING, mlx_dtype, random_array
from openruntime_jupyter.schemas.base import wrong
from openruntime_jupyter.schemas.values import ArrayDtype

INLINE_NUMBERS = 20_000
"""Maximum numbers in all inline lists of a parameter. Reading them blocks the server's event loop, for up to 10 ms."""
INLINE_DEPTH = 8
MAX_DIMENSIONS = 8
MAX_SIDE = 2**31 - 1
"""MLX uses 32-bit sizes along an axis, and crashes the process for larger ones."""
MAX_INTEGER = 2**63
MAX_ELEMENTS = 2**37
"""Maximum elements of one array, views included: more than fits into any memory, but too few for endless work on a view."""
KEY = 100
"""Bytes of the key of a random generator and its overhead."""


Side = Annotated[int, Field(ge=0, le=MAX_SIDE, strict=True)]
Shape = Annotated[list[Side], Field(max_length=MAX_DIMENSIONS)]


class Generator(Parameters):
    """An array that the worker creates, by exactly one of the first seven fields."""

    random: Shape | None = Field(None, description="Shape; uniform in [0, 1).")
    normal: Shape | None = Field(None, description="Shape; normally distributed, mean 0, standard deviation 1.")
    zeros: Shape | None = Field(None, description="Shape.")
    ones: Shape | None = Field(None, description="Shape.")
    arange: Side | None = Field(None, description="0, 1, 2 … below this number.")
    eye: Side | None = Field(None, description="The identity matrix of that size.")
    values: Annotated[list[Any] | int | float | bool | None, Field(description="The numbers, to combine with `dtype`.")] = None
    dtype: ArrayDtype | None = Field(None, description="Default: float32; int32 for `arange`; MLX's choice for `values`.")
    seed: int | None = Field(
        None,
        description="For `random` and `normal`; default: the index of the input, so that a task is reproducible.",
        ge=0,
        le=2**63 - 1,
        strict=True,
    )

    @model_validator(mode="after")
    def _one_way(self) -> Generator:
        ways = [name for name in _WAYS if getattr(self, name) is not None]
        if len(ways) != 1:
            raise wrong(f"a generator needs exactly one of {', '.join(_WAYS)}, but has {' and '.join(ways) or 'none'}")
        if self.seed is not None and self.way not in ("random", "normal"):
            raise wrong(f"seed: only for random and normal, not for {self.way}")
        if self.way in ("random", "normal") and self.dtype is not None and self.dtype not in FLOATING:
            raise wrong(f"dtype: {self.way} supports float16, bfloat16, float32 and float64, not {self.dtype}")
        if self.way == "values":
            check_numbers(self.values)
        if self.elements > MAX_ELEMENTS:
            raise wrong(f"{self.way}: {self.elements:,} elements exceed the maximum of {MAX_ELEMENTS:,}")
        return self

    @property
    def way(self) -> str:
        """Return the name of the field that defines the array."""
        return next(name for name in _WAYS if getattr(self, name) is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array."""
        if self.way == "values":
            return shape_of(self.values)
        if self.arange is not None:
            return (self.arange,)
        if self.eye is not None:
            return (self.eye, self.eye)
        return tuple(getattr(self, self.way))

    @property
    def elements(self) -> int:
        """Return the number of elements of the array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes."""
        return self.elements * (8 if self.way == "values" and self.dtype is None else SIZES[self.dtype or "float32"])

    @property
    def making(self) -> int:
        """Return the peak bytes while the array is built, including the array.

        Measured on MLX 0.32: random numbers are drawn in 32 bits and then converted, without a third copy.
        """
        if self.way not in ("random", "normal"):
            return self.nbytes
        return self.nbytes + KEY + (0 if self.dtype in (None, "float32") else 4 * self.elements)

    def build(self, mx: Any, index: int) -> Any:
        """Build the lazy array; `index` is the default seed."""
        dtype = mlx_dtype(self.dtype or ("int32" if self.way == "arange" else "float32"))
        if self.way == "values":
            return mx.array(self.values) if self.dtype is None else mx.array(self.values, dtype=dtype)
        if self.way in ("random", "normal"):
            key = mx.random.key(index if self.seed is None else self.seed)
            draw = mx.random.uniform if self.way == "random" else mx.random.normal
            return random_array(draw, self.shape, self.dtype or "float32", key=key)
        if self.arange is not None:
            return mx.arange(self.arange).astype(dtype)  # its dtype argument does not support bool
        return mx.eye(self.eye, dtype=dtype) if self.eye is not None else getattr(mx, self.way)(self.shape, dtype=dtype)


_WAYS = ("random", "normal", "zeros", "ones", "arange", "eye", "values")


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists by their first elements; `check_numbers` checks that they are regular."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def check_amount(value: Any) -> Any:
    """Return `value`; raise if its lists are too long to be processed in the server. Runs before any other validation."""
    left, waiting = INLINE_NUMBERS, [value]
    while waiting:
        each = waiting.pop()
        inside = list(each.values()) if isinstance(each, dict) else each
        left -= len(inside)
        if left < 0:
            raise wrong(
                f"inline lists may have at most {INLINE_NUMBERS:,} numbers in total: use a generator such as {{'random': [1024, 1024]}}"
            )
        waiting += [item for item in inside if isinstance(item, list | dict)]
    return value


def check_numbers(value: Any) -> None:
    """Raise unless `value` is a number or regular nested lists of numbers."""
    shape = shape_of(value)
    if len(shape) > INLINE_DEPTH:
        raise wrong(f"an inline list may have at most {INLINE_DEPTH} dimensions")
    level = [value]
    for side in shape:
        if not all(isinstance(each, list) and len(each) == side for each in level):
            raise wrong("an inline list must be regular: all rows must have the same length")
        level = [each for row in level for each in row]
    if not all(isinstance(each, int | float) for each in level):
        raise wrong("an inline list may contain only numbers and lists of numbers")
    if any(isinstance(each, int) and not -MAX_INTEGER <= each < MAX_INTEGER for each in level):
        raise wrong("an integer of more than 64 bits")


def read(value: Any, depth: int = 0) -> Any:
    """Parse generators and references in a JSON value; raise an error for pydantic if it is invalid."""
    if isinstance(value, dict):
        kind = ArrayRef if "array" in value else Generator
        try:
            return kind.model_validate(value)
        except ValidationError as problem:
            first = problem.errors(include_url=False, include_input=False)[0]
            message = describe_error(first, list(kind.model_fields))
            field = ".".join(str(part) for part in first["loc"])
            raise wrong(f"{field}: {message}" if field else message) from None
    if isinstance(value, list):
        if depth >= INLINE_DEPTH:
            raise wrong(f"lists may be nested at most {INLINE_DEPTH} deep")
        if not any(isinstance(each, list | dict) for each in value):
            return value
        return [read(each, depth + 1) for each in value]
    if isinstance(value, Generator | ArrayRef | str | int | float | None):
        return value
    raise wrong(f"unsupported type {type(value).__name__}: give a number, string, list, generator or array")


def generators(value: Any) -> Iterator[Generator]:
    """Yield the generators in a value returned by `read`."""
    if isinstance(value, Generator):
        yield value
    elif isinstance(value, list) and any(isinstance(each, list | Generator) for each in value):
        for each in value:
            yield from generators(each)


def elements(value: Any) -> int:
    """Return the number of elements in the arrays, generators and inline lists of a value."""
    if isinstance(value, Generator | ArrayRef):
        return value.elements
    if not isinstance(value, list):
        return 1
    inner = [each for each in value if isinstance(each, list | Generator | ArrayRef)]
    return len(value) - len(inner) + sum(map(elements, inner))


def needed(values: list[Any]) -> int:
    """Return the peak bytes while all of `values` are built one after the other."""
    worst = made = sum(each.nbytes for each in references(values))  # MLX copies them
    for generator in (each for value in values for each in generators(value)):
        worst = max(worst, made + generator.making)
        made += generator.nbytes
    return max(worst, made)


_GENERATORS = {
    "description": "A number, an inline list, or a generator: an object with one of random, normal, zeros, ones (a shape), arange, eye "
    '(a size), values (numbers), and optionally dtype and seed; or an uploaded array, {"array": id}.',
}
Value = Annotated[Any, BeforeValidator(read), WithJsonSchema(_GENERATORS)]
"""A number, string, inline list, generator or array."""
