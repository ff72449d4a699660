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
"""Elements of the reference of a reduction that are converted to float64 at once."""
DRAWING_SECONDS = 7e-9
"""Measured time to draw a random float32 on two x86-64 cores."""

Name = Literal["add", "subtract", "multiply", "divide", "saxpy", "dot", "norm", "sum", "max", "exp", "sqrt", "tanh"]


@dataclass(frozen=True)
class _VectorOperation:
    formula: str
    arrays: int
    """Number of vectors read and written, each counted once."""
    flops: int
    """Floating point operations per element; a function such as exp counts as one."""
    nanoseconds: float
    """Measured time per element in float32 on two x86-64 cores; only for the estimate."""
    make: Callable[[Any, Any, Any], Any]
    reference: Callable[[Any, Any, Any], Any]
    """Equivalent in NumPy; for a reduction, of one chunk."""
    join: Callable[[list[Any]], float] | None = None
    """Function that combines the chunks of a reduction; None for elementwise operations."""


_OPERATIONS: dict[str, _VectorOperation] = {
    "add": _VectorOperation("x + y", 3, 1, 0.3, lambda mx, x, y: x + y, lambda np, x, y: x + y),
    "subtract": _VectorOperation("x - y", 3, 1, 0.3, lambda mx, x, y: x - y, lambda np, x, y: x - y),
    "multiply": _VectorOperation("x y", 3, 1, 0.3, lambda mx, x, y: x * y, lambda np, x, y: x * y),
    "divide": _VectorOperation("x / (2 + y)", 3, 2, 0.6, lambda mx, x, y: x / (y + 2), lambda np, x, y: x / (y + 2)),
    "saxpy": _VectorOperation("3 x + y", 3, 2, 0.6, lambda mx, x, y: x * SCALAR + y, lambda np, x, y: SCALAR * x + y),
    "dot": _VectorOperation("sum(x y)", 2, 2, 3.3, lambda mx, x, y: mx.inner(x, y), lambda np, x, y: x @ y, math.fsum),
    "norm": _VectorOperation(
        "sqrt(sum(x^2))", 1, 2, 1.0, lambda mx, x, y: mx.linalg.norm(x), lambda np, x, y: x @ x, lambda parts: math.sqrt(math.fsum(parts))
    ),
    "sum": _VectorOperation("sum(x)", 1, 1, 0.9, lambda mx, x, y: mx.sum(x), lambda np, x, y: x.sum(), math.fsum),
    "max": _VectorOperation("max(x)", 1, 1, 0.6, lambda mx, x, y: mx.max(x), lambda np, x, y: x.max(), max),
    "exp": _VectorOperation("exp(x)", 2, 1, 11.6, lambda mx, x, y: mx.exp(x), lambda np, x, y: np.exp(x)),
    "sqrt": _VectorOperation("sqrt(1 + x)", 2, 2, 1.6, lambda mx, x, y: mx.sqrt(x + 1), lambda np, x, y: np.sqrt(x + 1)),
    "tanh": _VectorOperation("tanh(x)", 2, 1, 14.5, lambda mx, x, y: mx.tanh(x), lambda np, x, y: np.tanh(x)),
}
COUNTING = (
    "Each vector counts once for each read or write; a function such as exp is one operation per element. "
    "In MLX, divide, saxpy, sqrt and norm run as two or more kernels, which move more bytes than counted."
)


class Params(Parameters):
    """Operations on vectors x and y of equal length, uniform in [-1, 1)."""

    size: int = Field(1_000_000, description="Elements of each vector.", ge=1, le=2**31 - 1, strict=True)
    iterations: int = Field(5, description="Timed runs of each operation, after an untimed warm-up.", ge=1, le=100_000, strict=True)
    operations: list[Name] = Field(
        ["add", "multiply", "saxpy", "dot", "norm", "sum", "exp"],
        description="Operations to run.",
        min_length=1,
        max_length=len(_OPERATIONS),
    )
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field(
        "float32",
        description="Dtype of the vectors; float64 on the CPU only. float16 vectors are scaled so that the sum of their squares fits.",
    )
    seed: int = Field(0, description="Seed of the random vectors.", ge=0, le=2**63 - 1, strict=True)

    @field_validator("operations")
    @classmethod
    def _each_once(cls, operations: list[Name]) -> list[Name]:
        if len(set(operations)) != len(operations):
            raise wrong("name each operation once")
        return operations


def memory(params: Params) -> int:
    """Estimate the peak bytes.

    The peak is either x, y, a result and an intermediate result; or y while it is drawn in float32; or a result and a chunk of its
    reference.
    """
    item = Dtype(params.dtype).size
    comparing = 3 * item * params.size + 4 * min(params.size, CHUNK)
    return max(4 * item * params.size, (2 * item + 4) * params.size, comparing) + measurement.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Estimate the seconds of all operations from the measured times per element, plus drawing the vectors."""
    per_element = sum(_OPERATIONS[name].nanoseconds for name in params.operations) * 1e-9
    return params.size * (per_element * (params.iterations + 1) + 2 * DRAWING_SECONDS)


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the operations one after the other; compare with float64, elementwise ones on a sample, reductions in full."""
    import mlx.core as mx

    measurement.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "These operations")
    x, y = (_vector(mx, params, key) for key in mx.random.split(mx.random.key(params.seed)))
    watch = measurement.Watch(context, params.iterations * len(params.operations))
    results: dict[str, Any] = {}
    for name in params.operations:
        kind = _OPERATIONS[name]
        result, times = watch.time(lambda make=kind.make: make(mx, x, y), params.iterations, name)  # type: ignore[misc]
        moved, flops = kind.arrays * params.size * Dtype(params.dtype).size, kind.flops * params.size
        results[name] = {
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
        "operations": results,
    }


def _vector(mx: Any, params: Params, key: Any) -> Any:
    # The sum of squares of n numbers uniform in [-a, a) is n a²/3: in float16 it must stay below 65,504.
    bound = min(1.0, math.sqrt(90_000 / params.size)) if params.dtype == "float16" else 1.0
    dtype = Dtype(params.dtype).of(mx)
    drawn = mx.float32 if dtype == mx.float64 else dtype  # MLX can't draw float64
    vector = mx.random.uniform(-bound, bound, (params.size,), dtype=drawn, key=key).astype(dtype)
    mx.eval(vector)
    return vector


def _error(mx: Any, kind: _VectorOperation, x: Any, y: Any, result: Any) -> dict[str, float | int | None]:
    import numpy as np

    if kind.join is None:
        chosen = mx.array(measurement.sample(x.size))
        expected = kind.reference(np, measurement.as_numpy(x[chosen]), measurement.as_numpy(y[chosen]))
        return measurement.difference(measurement.as_numpy(result[chosen]), expected)
    expected = kind.join([float(kind.reference(np, *pair)) for pair in _chunks(x, y)])
    # A sum may cancel to nearly zero, so the error is relative to the sum of the magnitudes.
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
    returns_arrays=False,
)
