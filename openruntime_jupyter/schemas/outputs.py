"""Outputs of the built-in operations: `result.output` of their completed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from openruntime_jupyter.schemas.ai import Answer
from openruntime_jupyter.schemas.base import Wire, absent

ITERATIONS = "Number of timed iterations."
DTYPE = "MLX name of the element type."
MEMORY_ESTIMATE = "Estimated peak memory in bytes."


class Spread(Wire):
    """Seconds of the iterations of a computation."""

    min: float = Field(description="Fastest iteration.")
    median: float = Field(description="Median iteration.")
    max: float = Field(description="Slowest iteration.")


class NumericalError(Wire):
    """Difference of a result to NumPy's in float64; null if a number is not finite."""

    max_absolute: float | None = Field(description="Largest absolute error.")
    max_relative: float | None = Field(description="Largest absolute error relative to the magnitude of the result.")
    sampled: int = Field(description="Number of compared elements.")


class ArraySummary(Wire):
    """Array with its statistics. Those of complex elements are of their magnitudes."""

    shape: list[int] = Field(description="Shape of the array; empty for a scalar.")
    dtype: str = Field(description=DTYPE)
    size: int = Field(description="Number of elements.")
    nbytes: int = Field(description="Size of the elements in bytes.")
    min: float | bool | None = Field(description="Smallest finite element; null without one.")
    max: float | bool | None = Field(description="Largest finite element; null without one.")
    mean: float | None = Field(description="Mean of the finite elements; null without one.")
    non_finite: int = Field(description="Number of infinite and NaN elements.")
    value: Any = Field(
        description="Elements as nested lists; null for more than 1,000. Non-finite elements are null, complex ones `{real, imag}`."
    )


class ComputeOutput(ArraySummary):
    """Value of an expression."""

    expression: str = Field(description="The expression.")
    inputs: dict[str, str] = Field(description="Types and shapes of the inputs by name.")
    iterations: int = Field(description=ITERATIONS)
    seconds_per_iteration: Spread = Field(description="Times of the iterations.")
    memory_estimate: int = Field(description=MEMORY_ESTIMATE)


class MatrixMultiplyOutput(Wire):
    """Performance of a matrix multiplication."""

    m: int = Field(description="Rows of the first matrix.")
    n: int = Field(description="Columns of the second matrix.")
    k: int = Field(description="Columns of the first and rows of the second matrix.")
    dtype: str = Field(description=DTYPE)
    iterations: int = Field(description=ITERATIONS)
    seconds_per_iteration: Spread = Field(description="Times of the iterations.")
    flops_per_iteration: int = Field(description="Floating point operations of an iteration.")
    gflops: float = Field(description="GFLOP/s of the median iteration.")
    gflops_best: float = Field(description="GFLOP/s of the fastest iteration.")
    error: NumericalError = Field(description="Error of a sample of the product.")


class Measurement(Wire):
    """Performance of a computation over vectors."""

    formula: str = Field(description="The computation.")
    seconds_per_iteration: Spread = Field(description="Times of the iterations.")
    bytes_per_iteration: int = Field(description="Bytes read and written by an iteration.")
    gb_per_second: float = Field(description="GB/s of the median iteration.")
    gb_per_second_best: float = Field(description="GB/s of the fastest iteration.")
    flops_per_iteration: int | None = absent("Floating point operations of an iteration; absent for a plain copy.")
    gflops: float | None = absent("GFLOP/s of the median iteration; absent for a plain copy.")
    gflops_best: float | None = absent("GFLOP/s of the fastest iteration; absent for a plain copy.")
    error: NumericalError = Field(description="Error of the result.")


class VectorOperationsOutput(Wire):
    """Performance of operations on vectors."""

    size: int = Field(description="Number of elements of a vector.")
    dtype: str = Field(description=DTYPE)
    iterations: int = Field(description=ITERATIONS)
    counting: str = Field(description="How bytes and operations are counted.")
    operations: dict[str, Measurement] = Field(description="Measurements by operation.")


class MemoryBandwidthOutput(Wire):
    """Performance of STREAM's kernels."""

    size_mb: float = Field(description="Size of an array in MB (10^6 bytes).")
    elements: int = Field(description="Number of elements of an array.")
    dtype: str = Field(description=DTYPE)
    iterations: int = Field(description=ITERATIONS)
    counting: str = Field(description="How bytes are counted.")
    kernels: dict[str, Measurement] = Field(description="Measurements by kernel.")


class MlxOperationOutput(Wire):
    """Result of an MLX function."""

    function: str = Field(description="Name of the function.")
    arguments: str = Field(description="Types and shapes of the arguments.")
    iterations: int = Field(description=ITERATIONS)
    seconds_per_iteration: Spread = Field(description="Times of the iterations.")
    memory_estimate: int = Field(description=MEMORY_ESTIMATE)
    result: ArraySummary | list[ArraySummary] = Field(description="The resulting array, or a list of several.")


class ValueSummary(Wire):
    """Python value, described for display."""

    type: str = Field(description="Name of its class.")
    repr: str = Field(description="Its representation, truncated if it is long.")
    value: Any = absent("The value itself, if it is short JSON.")


class CallOutput(ValueSummary):
    """Return value of a function, or of the calls of a chunk of `map`. The value itself is the task's payload."""

    items: int | None = absent("Number of items of a chunk.")
    failed: int | None = absent("Number of items of a chunk whose call raised an exception.")


class PythonOutput(Wire):
    """Result of code. The outputs themselves are the task's payload."""

    outputs: dict[str, ValueSummary] = Field(description="Requested variables by name.")
    value: str | None = Field(description="Representation of the last expression; null without one.")


OUTPUTS: Mapping[str, type[BaseModel]] = {
    "call": CallOutput,
    "chat": Answer,
    "compute": ComputeOutput,
    "generate": Answer,
    "matrix_multiply": MatrixMultiplyOutput,
    "memory_bandwidth": MemoryBandwidthOutput,
    "mlx_operation": MlxOperationOutput,
    "python": PythonOutput,
    "vector_operations": VectorOperationsOutput,
}
"""Model of the output by operation. Outputs of other packages' operations are not described."""
