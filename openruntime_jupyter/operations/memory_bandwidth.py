"""`memory_bandwidth`: STREAM's four kernels, in GB/s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from openruntime_jupyter.operations import measurement
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.inputs import Dtype, wrong

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


BYTES_PER_SECOND = 20e9
"""Lower bound for MLX's copy, scale and add on two x86-64 cores with warm pages; measured are 26 to 41 GB/s."""
DRAWING_SECONDS = 7e-9
"""Measured time to draw a random float32 on the same cores."""
SCALAR = 3.0

Kernel = Literal["copy", "scale", "add", "triad"]


@dataclass(frozen=True)
class _Kernel:
    formula: str
    arrays: int
    """Arrays read and written, as STREAM counts them."""
    make: Callable[[Any, Any, Any], Any]
    reference: Callable[[Any, Any], Any]


_KERNELS: dict[str, _Kernel] = {
    # MLX avoids plain copies; joining two halves makes it move every byte.
    "copy": _Kernel("c = a", 2, lambda mx, a, b: mx.concatenate([a[: a.size // 2], a[a.size // 2 :]]), lambda a, b: a),
    "scale": _Kernel("c = 3 a", 2, lambda mx, a, b: a * SCALAR, lambda a, b: SCALAR * a),
    "add": _Kernel("c = a + b", 3, lambda mx, a, b: a + b, lambda a, b: a + b),
    "triad": _Kernel("c = a + 3 b", 3, lambda mx, a, b: a + b * SCALAR, lambda a, b: a + SCALAR * b),
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
    kernels: list[Kernel] = Field(["copy", "scale", "add", "triad"], description="Kernels to run.", min_length=1, max_length=4)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field(
        "float32", description="Dtype of the arrays; float64 on the CPU only."
    )

    @field_validator("kernels")
    @classmethod
    def _each_once(cls, kernels: list[Kernel]) -> list[Kernel]:
        if len(set(kernels)) != len(kernels):
            raise wrong("name each kernel once")
        return kernels

    @property
    def count(self) -> int:
        """Return the number of elements of each array."""
        return self.size_mb * 1_000_000 // Dtype(self.dtype).size


def memory(params: Params) -> int:
    """Estimate the peak bytes: a, b, c and the scaled b of triad; or b while it is drawn in float32."""
    item = Dtype(params.dtype).size
    return params.count * max(4 * item, 2 * item + 4) + measurement.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Estimate the seconds of all kernels at `BYTES_PER_SECOND`, plus drawing the arrays."""
    moved = sum(_KERNELS[name].arrays for name in params.kernels) * params.size_mb * 1e6 * (params.iterations + 1)
    return moved / BYTES_PER_SECOND + 2 * params.count * DRAWING_SECONDS


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the kernels one after the other; compare a sample of each result with NumPy in float64."""
    import mlx.core as mx

    measurement.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "This measurement")
    dtype = Dtype(params.dtype).of(mx)
    drawn = mx.float32 if dtype == mx.float64 else dtype  # MLX can't draw float64
    a, b = (mx.random.uniform(shape=(params.count,), dtype=drawn, key=mx.random.key(seed)).astype(dtype) for seed in (1, 2))
    mx.eval(a)
    mx.eval(b)
    watch = measurement.Watch(context, params.iterations * len(params.kernels))
    chosen = mx.array(measurement.sample(params.count))
    kernels: dict[str, Any] = {}
    for name in params.kernels:
        kernel = _KERNELS[name]
        result, times = watch.time(lambda make=kernel.make: make(mx, a, b), params.iterations, name)  # type: ignore[misc]
        moved = kernel.arrays * params.count * Dtype(params.dtype).size
        kernels[name] = {
            "formula": kernel.formula,
            "bytes_per_iteration": moved,
            "seconds_per_iteration": measurement.spread(times),
            **measurement.rates(moved, times, "gb_per_second"),
            "error": measurement.difference(
                measurement.as_numpy(result[chosen]), kernel.reference(measurement.as_numpy(a[chosen]), measurement.as_numpy(b[chosen]))
            ),
        }
        del result
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
    warm=measurement.warm,
    shared=True,
    returns_arrays=False,
)
