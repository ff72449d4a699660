"""`memory_bandwidth`: STREAM's four kernels, in GB/s."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.numerics import Kernel
from openruntime_jupyter.schemas.base import wrong

BYTES_PER_SECOND = 20e9
"""Lower bound for MLX's copy, scale and add on two x86-64 cores with warm pages; measured are 26 to 41 GB/s."""
SCALAR = 3.0

KernelName = Literal["copy", "scale", "add", "triad"]


_KERNELS: dict[str, Kernel] = {
    # MLX avoids plain copies; joining two halves makes it move every byte.
    "copy": Kernel("c = a", 2, lambda mx, a, b: mx.concatenate([a[: a.size // 2], a[a.size // 2 :]]), lambda np, a, b: a),
    "scale": Kernel("c = 3 a", 2, lambda mx, a, b: a * SCALAR, lambda np, a, b: SCALAR * a),
    "add": Kernel("c = a + b", 3, lambda mx, a, b: a + b, lambda np, a, b: a + b),
    "triad": Kernel("c = a + 3 b", 3, lambda mx, a, b: a + b * SCALAR, lambda np, a, b: a + SCALAR * b),
}
COUNTING = (
    "Each array counts once for each read or write, as in STREAM: 2 for copy and scale, 3 for add and triad. "
    "MLX runs triad as two kernels, which move 5 arrays."
)


class Params(Parameters):
    """Parameters of STREAM over arrays of one size."""

    size_mb: int = Field(
        32,
        description="Size of each array in MB (10^6 bytes); must be far larger than the caches to measure memory.",
        ge=1,
        le=1_000_000,
        strict=True,
    )
    iterations: int = Field(5, description="Timed runs of each kernel, after an untimed warm-up.", ge=1, le=100_000, strict=True)
    kernels: list[KernelName] = Field(["copy", "scale", "add", "triad"], description="Kernels to run.", min_length=1, max_length=4)
    dtype: numerics.FloatDtype = Field("float32", description="Dtype of the arrays; float64 on the CPU only.")

    @field_validator("kernels")
    @classmethod
    def _each_once(cls, kernels: list[KernelName]) -> list[KernelName]:
        if len(set(kernels)) != len(kernels):
            raise wrong("name each kernel once")
        return kernels

    @property
    def count(self) -> int:
        """Return the number of elements of each array."""
        return self.size_mb * 1_000_000 // SIZES[self.dtype]


def memory(params: Params) -> int:
    """Estimate the peak bytes: a, b, c and the scaled b of triad; or b while it is drawn in float32."""
    item = SIZES[params.dtype]
    return params.count * max(4 * item, 2 * item + 4) + numerics.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Estimate the seconds of all kernels at `BYTES_PER_SECOND`, plus drawing the arrays."""
    moved = sum(_KERNELS[name].arrays for name in params.kernels) * params.size_mb * 1e6 * (params.iterations + 1)
    return moved / BYTES_PER_SECOND + 2 * params.count * numerics.DRAWING_SECONDS


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the kernels one after the other; compare a sample of each result with NumPy in float64."""
    import mlx.core as mx

    numerics.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "This measurement")
    a, b = (numerics.random_array(mx.random.uniform, (params.count,), params.dtype, key=mx.random.key(seed)) for seed in (1, 2))
    mx.eval(a)
    mx.eval(b)
    watch = numerics.Watch(context, params.iterations * len(params.kernels))
    kernels = {name: _KERNELS[name].measure(watch, name, a, b, params.iterations) for name in params.kernels}
    return {
        "size_mb": params.size_mb,
        "elements": params.count,
        "dtype": params.dtype,
        "iterations": params.iterations,
        "counting": COUNTING,
        "kernels": kernels,
    }


operation = Operation(
    name="memory_bandwidth",
    summary="Measure memory bandwidth with STREAM's copy, scale, add and triad.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=numerics.warm,
    shared=True,
    returns_arrays=False,
)
