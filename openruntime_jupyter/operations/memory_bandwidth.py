"""`memory_bandwidth`: STREAM's four kernels, in GB/s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from openruntime_jupyter.operations import measurement as _figures
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.inputs import Dtype, wrong

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


BYTES_PER_SECOND = 20e9
"""What MLX's copy, scale and add reach at the least on two x86-64 cores with warm pages, as measured: 26 to 41 GB/s."""
DRAWING_SECONDS = 7e-9
"""Seconds that a random float32 took there to be drawn."""
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
    # MLX shares what it need not copy: joining the halves makes it move every byte.
    "copy": _Kernel("c = a", 2, lambda mx, a, b: mx.concatenate([a[: a.size // 2], a[a.size // 2 :]]), lambda a, b: a),
    "scale": _Kernel("c = 3 a", 2, lambda mx, a, b: a * SCALAR, lambda a, b: SCALAR * a),
    "add": _Kernel("c = a + b", 3, lambda mx, a, b: a + b, lambda a, b: a + b),
    "triad": _Kernel("c = a + 3 b", 3, lambda mx, a, b: a + b * SCALAR, lambda a, b: a + SCALAR * b),
}
COUNTING = (
    "Each array is counted once for being read or written, as STREAM does: 2 for copy and scale, 3 for add and triad. "
    "MLX runs triad as two kernels, which move 5."
)


class Params(Parameters):
    """STREAM over arrays of one size."""

    size_mb: int = Field(
        32,
        description="Size of each of the arrays in MB (10^6 bytes). Far above the caches, or it measures those.",
        ge=1,
        le=1_000_000,
        strict=True,
    )
    iterations: int = Field(5, description="Timed runs of each kernel; one more before them is not timed.", ge=1, le=100_000, strict=True)
    kernels: list[Kernel] = Field(["copy", "scale", "add", "triad"], description="Which to run.", min_length=1, max_length=4)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = Field("float32", description="Of the arrays; float64 on the CPU only.")

    @field_validator("kernels")
    @classmethod
    def _each_once(cls, kernels: list[Kernel]) -> list[Kernel]:
        if len(set(kernels)) != len(kernels):
            raise wrong("name each kernel once")
        return kernels

    @property
    def count(self) -> int:
        """Elements of each array."""
        return self.size_mb * 1_000_000 // Dtype(self.dtype).size


def memory(params: Params) -> int:
    """Bytes at the worst moment: a, b, c and triad's scaled b; or b while it is drawn in float32."""
    item = Dtype(params.dtype).size
    return params.count * max(4 * item, 2 * item + 4) + _figures.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Seconds of all kernels at `BYTES_PER_SECOND`, and of drawing the arrays."""
    moved = sum(_KERNELS[name].arrays for name in params.kernels) * params.size_mb * 1e6 * (params.iterations + 1)
    return moved / BYTES_PER_SECOND + 2 * params.count * DRAWING_SECONDS


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Run the kernels one after the other; a sample of each result is compared with NumPy's in float64."""
    import mlx.core as mx

    _figures.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "This measurement")
    dtype = Dtype(params.dtype).of(mx)
    drawn = mx.float32 if dtype == mx.float64 else dtype  # MLX draws no float64
    a, b = (mx.random.uniform(shape=(params.count,), dtype=drawn, key=mx.random.key(seed)).astype(dtype) for seed in (1, 2))
    mx.eval(a)
    mx.eval(b)
    watch = _figures.Watch(context, params.iterations * len(params.kernels))
    chosen = mx.array(_figures.sample(params.count))
    kernels: dict[str, Any] = {}
    for name in params.kernels:
        kernel = _KERNELS[name]
        result, times = watch.time(lambda make=kernel.make: make(mx, a, b), params.iterations, name)  # type: ignore[misc]
        moved = kernel.arrays * params.count * Dtype(params.dtype).size
        kernels[name] = {
            "formula": kernel.formula,
            "bytes_per_iteration": moved,
            "seconds_per_iteration": _figures.spread(times),
            **_figures.rates(moved, times, "gb_per_second"),
            "error": _figures.difference(
                _figures.as_numpy(result[chosen]), kernel.reference(_figures.as_numpy(a[chosen]), _figures.as_numpy(b[chosen]))
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
    warm=_figures.warm,
    shared=True,
)
