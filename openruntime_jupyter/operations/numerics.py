"""Random arrays, measurement of duration, rate and numerical error, and summaries of results, for operations that compute with MLX."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.context import TaskContext

CHUNK = 1_000_000
"""Elements of the reference of a reduction that are converted to float64 at once."""
SAMPLE = 1000
"""Number of elements of an output that are compared with the reference."""
SMALL_CHANGE = 100_000
"""Bytes of indices, keys and samples of that size, in addition to the operands."""
DRAWING_SECONDS = 7e-9
"""Measured time to draw a random float32 on two x86-64 cores."""
INLINE_VALUES = 1000
"""Maximum number of elements for which a summary has the values."""
SUMMARY_CHUNK = 250_000
"""Elements that a summary processes at once; interrupts are handled between chunks."""
SUMMARY_BYTES = 5 * SUMMARY_CHUNK
"""Bytes that a summary needs in MLX: a chunk of bfloat16 as float32, and overhead."""

FloatDtype = Literal["float32", "float16", "bfloat16", "float64"]
FLOATING = get_args(FloatDtype)


def mlx_dtype(name: str) -> Any:
    """Return the element type of MLX with that name."""
    import mlx.core as mx

    return mx.bool_ if name == "bool" else getattr(mx, name)


def random_array(draw: Callable[..., Any], shape: tuple[int, ...], dtype: str, **options: Any) -> Any:
    """Return a lazy array from `mx.random.uniform` or `mx.random.normal`. MLX can't draw float64, so it is converted from float32."""
    import mlx.core as mx

    kind = mlx_dtype(dtype)
    return draw(shape=shape, dtype=mx.float32 if kind == mx.float64 else kind, **options).astype(kind)


def warm() -> None:
    """Import MLX and NumPy."""
    import mlx.core  # noqa: F401
    import numpy as np  # noqa: F401


class Watch:
    """Timer for iterations of one or more kinds of work, with progress over all of them.

    `total` is the total number of timed iterations.
    """

    def __init__(self, context: TaskContext, total: int) -> None:
        self._context = context
        self._total = total
        self._done = 0

    def time(self, work: Callable[[], Any], iterations: int, message: str, warm_up: bool = True) -> tuple[Any, list[float]]:
        """Run `work` for `iterations`; return its last result, evaluated, and the seconds of each timed run.

        The untimed warm-up run fills caches and, on a GPU, compiles kernels. Interrupts are handled between runs.
        """
        import mlx.core as mx

        result, seconds = None, []
        for index in range(-1 if warm_up else 0, iterations):
            result = None  # frees memory for the next run
            started = time.perf_counter()
            result = work()
            mx.eval(result)
            mx.synchronize()
            if index >= 0:
                seconds.append(time.perf_counter() - started)
                self._done += 1
                self._context.progress(self._done, self._total, message)
        return result, seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Return `min`, `median` and `max` of the seconds of iterations."""
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def rates(amount: int, seconds: list[float], unit: str) -> dict[str, float]:
    """Return the rate in 10^9 of `amount` per second: `unit` for the median iteration, `<unit>_best` for the fastest."""
    times = spread(seconds)
    return {unit: amount / times["median"] / 1e9, f"{unit}_best": amount / times["min"] / 1e9}


def as_numpy(array: Any) -> Any:
    """Convert an MLX array to NumPy: float64 for floating types, complex128 for complex, integers unchanged."""
    import mlx.core as mx
    import numpy as np

    if array.dtype == mx.complex64:
        return np.array(array).astype(np.complex128)
    if mx.issubdtype(array.dtype, mx.floating):
        exact = array if array.dtype == mx.float64 else array.astype(mx.float32)  # NumPy has no bfloat16
        return np.array(exact).astype(np.float64)
    return np.array(array)


def sample(count: int, most: int = SAMPLE) -> list[int]:
    """Return at most `most` evenly spread indices below `count`, including the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


def difference(actual: Any, expected: Any, scale: float | None = None) -> dict[str, float | int | None]:
    """Compare `actual` with the float64 reference `expected` (both NumPy): the largest absolute error, and that error over `scale`.

    `scale` defaults to the largest absolute expected value. The errors are None if a number is not finite; `sampled` is the number of
    compared elements.
    """
    import numpy as np

    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not expected.size or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return {"max_absolute": None, "max_relative": None, "sampled": int(expected.size)}
    worst = float(np.abs(actual - expected).max())
    base = float(np.abs(expected).max()) if scale is None else scale
    return {"max_absolute": worst, "max_relative": worst / base if base else None, "sampled": int(expected.size)}


@dataclass(frozen=True)
class Kernel:
    """A timed computation over one or two arrays of equal length."""

    formula: str
    arrays: int
    """Number of arrays read and written, each counted once."""
    make: Callable[[Any, Any, Any], Any]
    """Function of `mlx.core` and both arrays."""
    reference: Callable[[Any, Any, Any], Any]
    """Equivalent in NumPy; for a reduction, of one chunk."""
    join: Callable[[list[Any]], float] | None = None
    """Function that combines the chunks of a reduction; None for elementwise computations."""
    flops: int = 0
    """Floating point operations per element; a function such as exp counts as one."""
    nanoseconds: float = 0.0
    """Measured time per element in float32 on two x86-64 cores; only for the estimate."""

    def measure(self, watch: Watch, name: str, x: Any, y: Any, iterations: int) -> dict[str, Any]:
        """Return formula, times, rates and the error of the result: elementwise ones on a sample, reductions in full."""
        import mlx.core as mx

        result, times = watch.time(lambda: self.make(mx, x, y), iterations, name)
        moved, flops = self.arrays * x.nbytes, self.flops * x.size
        return {
            "formula": self.formula,
            "seconds_per_iteration": spread(times),
            "bytes_per_iteration": moved,
            **rates(moved, times, "gb_per_second"),
            **({"flops_per_iteration": flops, **rates(flops, times, "gflops")} if flops else {}),
            "error": self._error(x, y, result),
        }

    def _error(self, x: Any, y: Any, result: Any) -> dict[str, float | int | None]:
        import mlx.core as mx
        import numpy as np

        if self.join is None:
            chosen = mx.array(sample(x.size))
            return difference(as_numpy(result[chosen]), self.reference(np, as_numpy(x[chosen]), as_numpy(y[chosen])))
        expected = self.join([float(self.reference(np, *pair)) for pair in _chunks(x, y)])
        # A sum may cancel to nearly zero, so the error is relative to the sum of the magnitudes.
        scale = max(abs(expected), self.join([float(self.reference(np, abs(a), abs(b))) for a, b in _chunks(x, y)]))
        return difference(as_numpy(result), expected, scale)


def _chunks(x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    for start in range(0, x.size, CHUNK):
        yield as_numpy(x[start : start + CHUNK]), as_numpy(y[start : start + CHUNK])


def refuse_float64_on_gpu(context: TaskContext, dtypes: list[str]) -> None:
    """Raise `InvalidRequest` for float64 on a GPU, which MLX does not support."""
    if context.device_type == "gpu" and "float64" in dtypes:
        raise InvalidRequest.of("dtype", "MLX supports float64 only on the CPU: set device_preference to 'cpu', or use float32")


def summary(array: Any) -> dict[str, Any]:
    """Summarise an evaluated MLX array as JSON.

    Returns
    -------
    `shape`, `dtype`, `size` (elements), `nbytes`;
    `min`, `max`, `mean` of the finite elements, or of their magnitudes for complex arrays; None without finite elements;
    `non_finite`: number of infinite and NaN elements;
    `value`: nested lists, or None for more than 1,000 elements. Non-finite elements are None, complex ones `{"real": …, "imag": …}`.
    """
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype).rpartition(".")[2].removesuffix("_"),
        "size": math.prod(array.shape),
        "nbytes": array.nbytes,
        **_statistics(array),
        # An empty array can have any number of empty rows.
        "value": plain(array.tolist()) if math.prod(side for side in array.shape if side) <= INLINE_VALUES else None,
    }


def plain(value: Any) -> Any:
    """Replace numbers in nested lists that JSON does not support."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, complex):
        return {"real": plain(value.real), "imag": plain(value.imag)}
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _statistics(array: Any) -> dict[str, Any]:
    import mlx.core as mx
    import numpy as np

    least = most = None
    total, finite, size = 0.0, 0, math.prod(array.shape)
    flat: Any = mx.reshape(array, (-1,)) if size else None
    for start in range(0, size, SUMMARY_CHUNK):
        piece = flat[start : start + SUMMARY_CHUNK]
        if array.dtype == mx.bfloat16:
            piece = piece.astype(mx.float32)  # NumPy has no bfloat16
        values = np.array(piece)
        if values.dtype.kind == "c":
            with np.errstate(all="ignore"):
                values = np.abs(values)
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            low, high = values.min().item(), values.max().item()
            least = low if least is None else min(least, low)
            most = high if most is None else max(most, high)
            finite += values.size
            total += float(values.sum(dtype=np.float64))
    return {"min": least, "max": most, "mean": total / finite if finite else None, "non_finite": size - finite}
