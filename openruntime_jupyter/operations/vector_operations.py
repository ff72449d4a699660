"""`vector_operations`: elementwise operations and reductions over long vectors, in GB/s and GFLOP/s."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.numerics import Kernel
from openruntime_jupyter.schemas.base import wrong

SCALAR = 3.0

Name = Literal["add", "subtract", "multiply", "divide", "saxpy", "dot", "norm", "sum", "max", "exp", "sqrt", "tanh"]


_OPERATIONS: dict[str, Kernel] = {
    "add": Kernel("x + y", 3, lambda mx, x, y: x + y, lambda np, x, y: x + y, flops=1, nanoseconds=0.3),
    "subtract": Kernel("x - y", 3, lambda mx, x, y: x - y, lambda np, x, y: x - y, flops=1, nanoseconds=0.3),
    "multiply": Kernel("x y", 3, lambda mx, x, y: x * y, lambda np, x, y: x * y, flops=1, nanoseconds=0.3),
    "divide": Kernel("x / (2 + y)", 3, lambda mx, x, y: x / (y + 2), lambda np, x, y: x / (y + 2), flops=2, nanoseconds=0.6),
    "saxpy": Kernel("3 x + y", 3, lambda mx, x, y: x * SCALAR + y, lambda np, x, y: SCALAR * x + y, flops=2, nanoseconds=0.6),
    "dot": Kernel("sum(x y)", 2, lambda mx, x, y: mx.inner(x, y), lambda np, x, y: x @ y, math.fsum, 2, 3.3),
    "norm": Kernel(
        "sqrt(sum(x^2))", 1, lambda mx, x, y: mx.linalg.norm(x), lambda np, x, y: x @ x, lambda parts: math.sqrt(math.fsum(parts)), 2, 1.0
    ),
    "sum": Kernel("sum(x)", 1, lambda mx, x, y: mx.sum(x), lambda np, x, y: x.sum(), math.fsum, 1, 0.9),
    "max": Kernel("max(x)", 1, lambda mx, x, y: mx.max(x), lambda np, x, y: x.max(), max, 1, 0.6),
    "exp": Kernel("exp(x)", 2, lambda mx, x, y: mx.exp(x), lambda np, x, y: np.exp(x), flops=1, nanoseconds=11.6),
    "sqrt": Kernel("sqrt(1 + x)", 2, lambda mx, x, y: mx.sqrt(x + 1), lambda np, x, y: np.sqrt(x + 1), flops=2, nanoseconds=1.6),
    "tanh": Kernel("tanh(x)", 2, lambda mx, x, y: mx.tanh(x), lambda np, x, y: np.tanh(x), flops=1, nanoseconds=14.5),
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
    dtype: numerics.FloatDtype = Field(
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
    item = SIZES[params.dtype]
    comparing = 3 * item * params.size + 4 * min(params.size, numerics.CHUNK)
    return max(4 * item * params.size, (2 * item + 4) * params.size, comparing) + numerics.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Estimate the seconds of all operations from the measured times per element, plus drawing the vectors."""
    per_element = sum(_OPERATIONS[name].nanoseconds for name in params.operations) * 1e-9
    return params.size * (per_element * (params.iterations + 1) + 2 * numerics.DRAWING_SECONDS)


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the operations one after the other; compare with float64, elementwise ones on a sample, reductions in full."""
    import mlx.core as mx

    numerics.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "These operations")
    x, y = (_vector(mx, params, key) for key in mx.random.split(mx.random.key(params.seed)))
    watch = numerics.Watch(context, params.iterations * len(params.operations))
    results = {name: _OPERATIONS[name].measure(watch, name, x, y, params.iterations) for name in params.operations}
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
    vector = numerics.random_array(mx.random.uniform, (params.size,), params.dtype, low=-bound, high=bound, key=key)
    mx.eval(vector)
    return vector


operation = Operation(
    name="vector_operations",
    summary="Run elementwise operations and reductions over vectors and measure GB/s and GFLOP/s.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=numerics.warm,
    shared=True,
    returns_arrays=False,
)
