"""What a parameter may hold where an array is meant: a number, an inline list, or a generator; read in the server, built in a worker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from openruntime_jupyter.operations.arrays import ArrayRef, references
from openruntime_jupyter.operations.base import Parameters, told

INLINE_NUMBERS = 20_000
"""Numbers of all inline lists of a parameter: the server's event loop reads them, and ten milliseconds are enough to hold it up."""
INLINE_DEPTH = 8
MAX_DIMENSIONS = 8
MAX_SIDE = 2**31 - 1
"""MLX counts along an axis in 32 bits, and ends the process where one is given more."""
MAX_INTEGER = 2**63
MAX_ELEMENTS = 2**37
"""Elements of one array, views included: above what any memory holds, below where a view makes endless work."""


KEY = 100
"""Bytes of a random generator's key and of what comes with it."""


class Dtype(str, Enum):
    """The element types of MLX."""

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    COMPLEX64 = "complex64"

    def __str__(self) -> str:
        return self.value

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return _SIZES[self]

    @property
    def floating(self) -> bool:
        """Whether it holds real fractions."""
        return self in (Dtype.FLOAT16, Dtype.BFLOAT16, Dtype.FLOAT32, Dtype.FLOAT64)

    def of(self, mx: Any) -> Any:
        """MLX's own object for it."""
        return mx.bool_ if self is Dtype.BOOL else getattr(mx, self.value)


_SIZES = {dtype: int("".join(filter(str.isdigit, dtype)) or 8) // 8 for dtype in Dtype}

Side = Annotated[int, Field(ge=0, le=MAX_SIDE, strict=True)]
Shape = Annotated[list[Side], Field(max_length=MAX_DIMENSIONS)]


def wrong(problem: str) -> PydanticCustomError:
    """A validation error whose text is `problem`, without pydantic's "Value error" before it."""
    return PydanticCustomError("wrong", "{problem}", {"problem": problem})  # as context, so that braces in it stay as they are


class Generator(Parameters):
    """An array that is made in the worker, so that it need not travel: exactly one of the first seven fields says how."""

    random: Shape | None = Field(None, description="Shape; uniform in [0, 1).")
    normal: Shape | None = Field(None, description="Shape; normally distributed, mean 0, deviation 1.")
    zeros: Shape | None = Field(None, description="Shape.")
    ones: Shape | None = Field(None, description="Shape.")
    arange: Side | None = Field(None, description="0, 1, 2 … below this.")
    eye: Side | None = Field(None, description="The identity matrix of that size.")
    values: Annotated[list[Any] | int | float | bool | None, Field(description="The numbers themselves, for a `dtype` of your choice.")] = (
        None
    )
    dtype: Dtype | None = Field(None, description="Default float32; int32 for `arange`; what MLX makes of them for `values`.")
    seed: int | None = Field(
        None, description="For `random` and `normal`; default: the input's place, so that a task repeats.", ge=0, le=2**63 - 1, strict=True
    )

    @model_validator(mode="after")
    def _one_way(self) -> Generator:
        ways = [name for name in _WAYS if getattr(self, name) is not None]
        if len(ways) != 1:
            raise wrong(f"a generator says one of {', '.join(_WAYS)}, and this one {' and '.join(ways) or 'none'}")
        if self.seed is not None and self.way not in ("random", "normal"):
            raise wrong(f"seed: only random and normal take one, not {self.way}")
        if self.way in ("random", "normal") and self.dtype is not None and not self.dtype.floating:
            raise wrong(f"dtype: {self.way} makes float16, bfloat16, float32 or float64, not {self.dtype}")
        if self.way == "values":
            check_numbers(self.values)
        if self.elements > MAX_ELEMENTS:
            raise wrong(f"{self.way}: {self.elements:,} elements; the most is {MAX_ELEMENTS:,}")
        return self

    @property
    def way(self) -> str:
        """Which of its fields says how to make it."""
        return next(name for name in _WAYS if getattr(self, name) is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        if self.way == "values":
            return shape_of(self.values)
        if self.arange is not None:
            return (self.arange,)
        if self.eye is not None:
            return (self.eye, self.eye)
        return tuple(getattr(self, self.way))

    @property
    def elements(self) -> int:
        """How many elements the array has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.elements * (8 if self.way == "values" and self.dtype is None else (self.dtype or Dtype.FLOAT32).size)

    @property
    def making(self) -> int:
        """Bytes that making it needs, the array included.

        Measured on MLX 0.32: random numbers are drawn as 32 bits and then converted, and no third copy is alive.
        """
        if self.way not in ("random", "normal"):
            return self.nbytes
        return self.nbytes + KEY + (0 if self.dtype in (None, Dtype.FLOAT32) else 4 * self.elements)

    def build(self, mx: Any, place: int) -> Any:
        """The array, not evaluated yet; `place` seeds it where no seed was given."""
        dtype = (self.dtype or (Dtype.INT32 if self.way == "arange" else Dtype.FLOAT32)).of(mx)
        if self.way == "values":
            return mx.array(self.values) if self.dtype is None else mx.array(self.values, dtype=dtype)
        if self.way in ("random", "normal"):
            key = mx.random.key(place if self.seed is None else self.seed)
            draw = mx.random.uniform if self.way == "random" else mx.random.normal
            drawn = mx.float32 if dtype == mx.float64 else dtype  # MLX draws no float64
            return draw(shape=self.shape, dtype=drawn, key=key).astype(dtype)
        if self.arange is not None:
            return mx.arange(self.arange).astype(dtype)  # its own dtype argument takes no bool
        return mx.eye(self.eye, dtype=dtype) if self.eye is not None else getattr(mx, self.way)(self.shape, dtype=dtype)


_WAYS = ("random", "normal", "zeros", "ones", "arange", "eye", "values")


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of nested lists, which `check_numbers` has found to be even."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def check_amount(value: Any) -> Any:
    """`value`, unless its lists are too long to be looked at in the server: the first thing that is done with any."""
    left, waiting = INLINE_NUMBERS, [value]
    while waiting:
        each = waiting.pop()
        inside = list(each.values()) if isinstance(each, dict) else each
        left -= len(inside)
        if left < 0:
            raise wrong(f"inline lists may have {INLINE_NUMBERS:,} numbers in all: use a generator such as {{'random': [1024, 1024]}}")
        waiting += [item for item in inside if isinstance(item, list | dict)]
    return value


def check_numbers(value: Any) -> None:
    """Raise unless `value` is a number or nested lists of numbers that make an array."""
    shape = shape_of(value)
    if len(shape) > INLINE_DEPTH:
        raise wrong(f"an inline list may have {INLINE_DEPTH} dimensions")
    level = [value]
    for side in shape:
        if not all(isinstance(each, list) and len(each) == side for each in level):
            raise wrong("an inline list must be even: every row as long as the first")
        level = [each for row in level for each in row]
    if not all(isinstance(each, int | float) for each in level):
        raise wrong("an inline list holds numbers and lists of them only")
    if any(isinstance(each, int) and not -MAX_INTEGER <= each < MAX_INTEGER for each in level):
        raise wrong("a whole number of more than 64 bits")


def read(value: Any, depth: int = 0) -> Any:
    """A value as it came in JSON, with generators and references read; raises what pydantic turns into a validation error."""
    if isinstance(value, dict):
        kind = ArrayRef if "array" in value else Generator
        try:
            return kind.model_validate(value)
        except ValidationError as problem:
            first = problem.errors(include_url=False, include_input=False)[0]
            said = told(first, list(kind.model_fields))
            place = ".".join(str(part) for part in first["loc"])
            raise wrong(f"{place}: {said}" if place else said) from None
    if isinstance(value, list):
        if depth >= INLINE_DEPTH:
            raise wrong(f"lists may be nested {INLINE_DEPTH} deep")
        if not any(isinstance(each, list | dict) for each in value):
            return value
        return [read(each, depth + 1) for each in value]
    if isinstance(value, Generator | ArrayRef | str | int | float | None):
        return value
    raise wrong(f"{type(value).__name__} is none of number, string, list, generator, array")


def generators(value: Any) -> Iterator[Generator]:
    """Every generator in a value that `read` gave."""
    if isinstance(value, Generator):
        yield value
    elif isinstance(value, list) and any(isinstance(each, list | Generator) for each in value):
        for each in value:
            yield from generators(each)


def elements(value: Any) -> int:
    """How many elements the arrays of a value have: generators, and the numbers of inline lists."""
    if isinstance(value, Generator | ArrayRef):
        return value.elements
    if not isinstance(value, list):
        return 1
    inner = [each for each in value if isinstance(each, list | Generator | ArrayRef)]
    return len(value) - len(inner) + sum(map(elements, inner))


def needed(values: list[Any]) -> int:
    """Bytes that building all of `values`, one after the other, needs at its worst moment."""
    worst = made = sum(each.nbytes for each in references(values))  # MLX copies them
    for generator in (each for value in values for each in generators(value)):
        worst = max(worst, made + generator.making)
        made += generator.nbytes
    return max(worst, made)


_GENERATORS = {
    "description": "A number, an inline list, or a generator: an object with one of random, normal, zeros, ones (a shape), arange, eye "
    '(a size), values (numbers), and optionally dtype and seed; or an array that was sent before, {"array": id}.',
}
Value = Annotated[Any, BeforeValidator(read), WithJsonSchema(_GENERATORS)]
"""A number, string, inline list, generator or array."""
