"""`matrix_multiply`: products of two random matrices, timed, in GFLOP/s."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from openruntime_jupyter.arrays.array_layout import SIZES
from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.schemas.base import wrong

FLOPS_PER_SECOND = 180e9
"""Measured for float32 with OpenBLAS on two x86-64 cores; MLX's bundled BLAS is 40 times slower there, and a GPU is faster."""
SAMPLED_SIDE = 32
"""Number of rows and columns of the product that are compared with the reference."""

MatrixSide = Annotated[int, Field(ge=1, le=65_536, strict=True)]


class Params(Parameters):
    """A product of an m by k and a k by n matrix."""

    size: MatrixSide | None = Field(None, description="Side of square matrices; default 512. Or give m, n and k.")
    m: MatrixSide | None = Field(None, description="Rows of the first matrix and of the product.")
    n: MatrixSide | None = Field(None, description="Columns of the second matrix and of the product.")
    k: MatrixSide | None = Field(None, description="Columns of the first matrix and rows of the second.")
    iterations: int = Field(5, description="Timed products, after an untimed warm-up.", ge=1, le=100_000, strict=True)
    dtype: numerics.FloatDtype = Field("float32", description="Dtype of both matrices and the product; float64 on the CPU only.")
    seed: int = Field(0, description="Seed of the random matrices, which are uniform in [-1, 1).", ge=0, le=2**63 - 1, strict=True)

    @model_validator(mode="after")
    def _one_way(self) -> Params:
        sides = {"m": self.m, "n": self.n, "k": self.k}
        given = [name for name, side in sides.items() if side is not None]
        if given and self.size is not None:
            raise wrong(f"give either size, or m, n and k (found size and {' and '.join(given)})")
        if given and len(given) < 3:
            raise wrong(f"give all of m, n and k: {' and '.join(name for name in sides if name not in given)} missing")
        return self

    @property
    def sides(self) -> tuple[int, int, int]:
        """Return m, n and k."""
        if self.m is not None and self.n is not None and self.k is not None:
            return self.m, self.n, self.k
        side = 512 if self.size is None else self.size
        return side, side, side

    @property
    def flops(self) -> int:
        """Return the floating point operations of one product: m n k multiplications and as many additions."""
        m, n, k = self.sides
        return 2 * m * n * k


def memory(params: Params) -> int:
    """Estimate the peak bytes.

    The peak is either both matrices and the product with the compared rows and columns, or the second matrix while it is drawn in
    float32.
    """
    m, n, k = params.sides
    item = SIZES[params.dtype]
    multiplying = item * (m * k + k * n + m * n) + SAMPLED_SIDE * (item + 4) * (2 * k + n)
    drawing = max((4 + item) * m * k, item * m * k + (4 + item) * k * n)
    return max(multiplying, drawing) + numerics.SMALL_CHANGE


def seconds(params: Params) -> float:
    """Estimate the seconds of all products at `FLOPS_PER_SECOND` for any dtype; the task's timeout limits slower ones."""
    return params.flops * (params.iterations + 1) / FLOPS_PER_SECOND


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Multiply, and compare a sample of the product with NumPy's in float64."""
    import mlx.core as mx

    numerics.refuse_float64_on_gpu(context, [params.dtype])
    context.require_memory(memory(params), "This product")
    m, n, k = params.sides
    first, second = mx.random.split(mx.random.key(params.seed))
    a = numerics.random_array(mx.random.uniform, (m, k), params.dtype, low=-1, high=1, key=first)
    b = numerics.random_array(mx.random.uniform, (k, n), params.dtype, low=-1, high=1, key=second)
    mx.eval(a)
    mx.eval(b)
    product, times = numerics.Watch(context, params.iterations).time(lambda: a @ b, params.iterations, f"{m} by {k} times {k} by {n}")
    return {
        "m": m,
        "n": n,
        "k": k,
        "dtype": params.dtype,
        "iterations": params.iterations,
        "seconds_per_iteration": numerics.spread(times),
        "flops_per_iteration": params.flops,
        **numerics.rates(params.flops, times, "gflops"),
        "error": _error(mx, a, b, product),
    }


def _error(mx: Any, a: Any, b: Any, product: Any) -> dict[str, float | int | None]:
    rows, columns = (mx.array(numerics.sample(side, SAMPLED_SIDE)) for side in product.shape)
    expected = numerics.as_numpy(a[rows]) @ numerics.as_numpy(b[:, columns])
    return numerics.difference(numerics.as_numpy(product[rows][:, columns]), expected)


operation = Operation(
    name="matrix_multiply",
    summary="Multiply two random matrices and measure GFLOP/s.",
    params=Params,
    run=run,
    memory=memory,
    seconds=seconds,
    warm=numerics.warm,
    shared=True,
    returns_arrays=False,
)
