"""Figures that a person can check: how long each iteration took, how fast that is, and how far off the numbers are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.errors import InvalidRequest

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext


SAMPLE = 1000
"""How many elements of an output are compared with the reference."""
SMALL_CHANGE = 100_000
"""Bytes that indices, keys and samples of that size need beside what an operation computes on."""


def warm() -> None:
    """Import what the operations compute with."""
    import mlx.core  # noqa: F401
    import numpy as np  # noqa: F401


class Watch:
    """Times iterations of one or more kinds of work and tells the progress over all of them.

    `total` is the number of timed iterations that there will be.
    """

    def __init__(self, context: TaskContext, total: int) -> None:
        self._context = context
        self._total = total
        self._done = 0

    def time(self, work: Callable[[], Any], iterations: int, message: str, warm_up: bool = True) -> tuple[Any, list[float]]:
        """Run `work` so often; gives its last result, evaluated, and the seconds of each timed run.

        A run before the first fills caches and, on a GPU, compiles kernels; it is not timed. An interrupt is heard between runs.
        """
        import mlx.core as mx

        result, seconds = None, []
        for index in range(-1 if warm_up else 0, iterations):
            result = None  # its memory serves the next run
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
    """Seconds of iterations as `min`, `median` and `max`."""
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def rates(amount: int, seconds: list[float], unit: str) -> dict[str, float]:
    """How many thousand millions of `amount` a second: `unit` at the median iteration, `<unit>_best` at the fastest."""
    times = spread(seconds)
    return {unit: amount / times["median"] / 1e9, f"{unit}_best": amount / times["min"] / 1e9}


def as_numpy(array: Any) -> Any:
    """An MLX array as NumPy's: float64 for every floating type, complex128 for complex, integers as they are."""
    import mlx.core as mx
    import numpy as np

    if array.dtype == mx.complex64:
        return np.array(array).astype(np.complex128)
    if mx.issubdtype(array.dtype, mx.floating):
        exact = array if array.dtype == mx.float64 else array.astype(mx.float32)  # NumPy has no bfloat16
        return np.array(exact).astype(np.float64)
    return np.array(array)


def sample(count: int, most: int = SAMPLE) -> list[int]:
    """At most `most` indices below `count`, spread evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


def difference(actual: Any, expected: Any, scale: float | None = None) -> dict[str, float | int | None]:
    """How far `actual` is from the float64 reference `expected` (both NumPy): the largest absolute error, and that error over `scale`.

    `scale` is the largest absolute expected value unless given. Null where a number is not finite; `sampled` says how many
    elements were compared.
    """
    import numpy as np

    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not expected.size or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return {"max_absolute": None, "max_relative": None, "sampled": int(expected.size)}
    worst = float(np.abs(actual - expected).max())
    base = float(np.abs(expected).max()) if scale is None else scale
    return {"max_absolute": worst, "max_relative": worst / base if base else None, "sampled": int(expected.size)}


def refuse_float64_on_gpu(context: TaskContext, dtypes: list[str]) -> None:
    """Raise `InvalidRequest` where float64 is asked of a GPU, which MLX does not offer on any."""
    if context.device_type == "gpu" and "float64" in dtypes:
        raise InvalidRequest.of("dtype", "MLX has float64 on the CPU only: ask for device_preference 'cpu', or for float32")
