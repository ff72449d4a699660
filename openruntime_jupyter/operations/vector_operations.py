"""`vector_operations`: elementwise operations and reductions over long vectors, in GB/s and GFLOP/s."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from openruntime_jupyter.operations import measurement
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.inputs import Dtype, wrong

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


SCALAR = 3.0
CHUNK = 1_000_000
"""Elements of a reduction's reference that are float64 at once."""
DRAWING_SECONDS = 7e-9
"""Seconds that a random float32 took to be drawn on two x86-64 cores, as measured."""

Name = Literal["add", "subtract", "multiply", "divide", "saxpy", "dot", "norm", "sum", "max", "exp", "sqrt", "tanh"]


@dataclass(frozen=True)
class _Kind:
    formula: str
    arrays: int
    """Vectors read and written, each counted once."""
    flops: int
    """Floating point operations an element, a function such as exp counted as one."""
    nanoseconds: float
    """An element took that long in float32 on two x86-64 cores, as measured: for the estimate only."""
    make: Callable[[Any, Any, Any], Any]
    reference: Callable[[Any, Any, Any], Any]
    """The same in NumPy; for a reduction, of one chunk."""
    join: Callable[[list[Any]], float] | None = None
    """What makes a reduction's chunks one number; None for what is done element by element."""


_KINDS: dict[str, _Kind] = {
    "add": _Kind("x + y", 3, 1, 0.3, lambda mx, x, y: x + y, lambda np, x, y: x + y),
    "subtract": _Kind("x - y", 3, 1, 0.3, lambda mx, x, y: x - y, lambda np, x, y: x - y),
    "multiply": _Kind("x y", 3, 1, 0.3, lambda mx, x, y: x * y, lambda np, x, y: x * y),
    "divide": _Kind("x / (2 + y)", 3, 2, 0.6, lambda mx, x, y: x / (y + 2), lambda np, x, y: x / (y + 2)),
    "saxpy": _Kind("3 x + y", 3, 2, 0.6, lambda mx, x, y: x * SCALAR + y, lambda np, x, y: SCALAR * x + y),
    "dot": _Kind("sum(x y)", 2, 2, 3.3, lambda mx, x, y: mx.inner(x, y), lambda np, x, y: x @ y, math.fsum),
    "norm": _Kind(
        "sqrt(sum(x^2))", 1, 2, 1.0, lambda mx, x, y: mx.linalg.norm(x), lambda np, x, y: x @ x, lambda parts: math.sqrt(math.fsum(parts))
    ),
    "sum": _Kind("sum(x)", 1, 1, 0.9, lambda mx, x, y: mx.sum(x), lambda np, x, y: x.sum(), math.fsum),
    "max": _Kind("max(x)", 1, 1, 0.6, lambda mx, x, y: mx.max(x), lambda np, x, y: x.max(), max),
    "exp": _Kind("exp(x)", 2, 1, 11.6, lambda mx, x, y: mx.exp(x), lambda np, x, y: np.exp(x)),
    "sqrt": _Kind("sqrt(1 + x)", 2, 2, 1.6, lambda mx, x, y: mx.sqrt(x + 1), lambda np, x, y: np.sqrt(x + 1)),
    "tanh": _Kind("tanh(x)", 2, 1, 14.5, lambda mx, x, y: mx.tanh(x), lambda np, x, y: np.tanh(x)),
}
COUNTING = (
    "Each vector is counted once for being read or written; a function such as exp is one operation an element. "
    "divide, saxpy, sqrt and norm run as two kernels or more in MLX, which move more than is counted."
)


class Params(Parameters):
    """Operations on vectors x and y of one length, uniform in [-1, 1)."""

    size: int = Field(1_000_000, description="Elements of each vector.", ge=1, le=2**31 - 1, strict=True)
    iterations: int = Field(
        5, description="Timed runs of each operation; one more before them is not timed.", ge=1, le=100_000, strict=True
    )
    operations: list[Name] = Field(
        ["add", "multiply", "saxpy", "dot", "norm", "sum", "exp"], description="Which to run.", min_length=1, max_length=len(_KINDS)
    )
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field(
        "float32",
        description="Of the vectors; float64 on the CPU only. In float16 the vectors are scaled so that the sum of their squares fits.",
    )
    seed: int = Field(0, description="Of the random vectors.", ge=0, le=2**63 - 1, strict=True)

    @field_validator("operations")
    @classmethod
    def _each_once(cls, operations: list[Name]) -> list[Name]:
        if len(set(operations)) != len(operations):
            raise wrong("name each operation once")
        return operations


def memory(params: Params) -> int:
    """Bytes at the worst moment.

    That is x, y, a result and an intermediate one; or y while it is drawn in float32; or a chunk of the reference beside a result.
    """
    item = Dtype(params.dtype).size
    comparing = 3 * item * params.size + 4 * min(params.size, CHUNK)
    return max(4 * item * params.size, (2 * item + 4) * params.size, comparing) + measurement.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Seconds of all operations, from what an element of each took in float32 on the reference machine, and of drawing the vectors."""
    an_element = sum(_KINDS[name].nanoseconds for name in params.operations) * 1e-9
    return params.size * (an_element * (params.iterations + 1) + 2 * DRAWING_SECONDS)


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the operations one after the other; elementwise ones are compared with float64 on a sample, reductions in full."""
    import mlx.core as mx

    measurement.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "These operations")
    x, y = (_vector(mx, params, key) for key in mx.random.split(mx.random.key(params.seed)))
    watch = measurement.Watch(context, params.iterations * len(params.operations))
    answers: dict[str, Any] = {}
    for name in params.operations:
        kind = _KINDS[name]
        result, times = watch.time(lambda make=kind.make: make(mx, x, y), params.iterations, name)  # type: ignore[misc]
        moved, flops = kind.arrays * params.size * Dtype(params.dtype).size, kind.flops * params.size
        answers[name] = {
            "formula": kind.formula,
            "seconds_per_iteration": measurement.spread(times),
            "bytes_per_iteration": moved,
            **measurement.rates(moved, times, "gb_per_second"),
            "flops_per_iteration": flops,
            **measurement.rates(flops, times, "gflops"),
            "error": _error(mx, kind, x, y, result),
        }
        del result
    return {
        "size": params.size,
        "dtype": params.dtype,
        "iterations": params.iterations,
        "counting": COUNTING,
        "operations": answers,
    }


def _vector(mx: Any, params: Params, key: Any) -> Any:
    # The sum of squares of n numbers uniform in [-a, a) is n a²/3: in float16 it must stay below 65,504.
    bound = min(1.0, math.sqrt(90_000 / params.size)) if params.dtype == "float16" else 1.0
    dtype = Dtype(params.dtype).of(mx)
    drawn = mx.float32 if dtype == mx.float64 else dtype  # MLX draws no float64
    vector = mx.random.uniform(-bound, bound, (params.size,), dtype=drawn, key=key).astype(dtype)
    mx.eval(vector)
    return vector


def _error(mx: Any, kind: _Kind, x: Any, y: Any, result: Any) -> dict[str, float | int | None]:
    import numpy as np

    if kind.join is None:
        chosen = mx.array(measurement.sample(x.size))
        expected = kind.reference(np, measurement.as_numpy(x[chosen]), measurement.as_numpy(y[chosen]))
        return measurement.difference(measurement.as_numpy(result[chosen]), expected)
    expected = kind.join([float(kind.reference(np, *pair)) for pair in _chunks(x, y)])
    # A sum may cancel to nearly nothing: what rounding is measured by is the length of what was summed.
    scale = max(abs(expected), kind.join([float(kind.reference(np, abs(a), abs(b))) for a, b in _chunks(x, y)]))
    return measurement.difference(measurement.as_numpy(result), expected, scale)


def _chunks(x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    for start in range(0, x.size, CHUNK):
        yield measurement.as_numpy(x[start : start + CHUNK]), measurement.as_numpy(y[start : start + CHUNK])


operation = Operation(
    name="vector_operations",
    summary="Run elementwise operations and reductions over vectors and measure GB/s and GFLOP/s.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=measurement.warm,
    shared=True,
)
