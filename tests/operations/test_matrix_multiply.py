from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.operations import matrix_multiply

# Maximum rounding error of the dtype times the length of the sums of these shapes.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-13}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (100, 33, 257), (64, 64, 64)])
def test_error_is_within_rounding_of_dtype(run, shape, dtype):
    m, n, k = shape
    output = run("matrix_multiply", {"m": m, "n": n, "k": k, "dtype": dtype, "iterations": 1})
    assert (output["m"], output["n"], output["k"]) == shape
    assert output["flops_per_iteration"] == 2 * m * n * k
    assert output["error"]["sampled"] == min(m, 32) * min(n, 32)
    assert output["error"]["max_relative"] < TOLERANCE[dtype]


def test_lower_precision_has_larger_error(run):
    errors = [
        run("matrix_multiply", {"size": 128, "dtype": dtype, "iterations": 1})["error"] for dtype in ("float64", "float32", "float16")
    ]
    assert [error["max_absolute"] for error in errors] == sorted(error["max_absolute"] for error in errors)
    assert errors[0]["max_absolute"] < 1e-10 < errors[1]["max_absolute"]


def test_wrong_product_has_large_error():
    a, b = mx.random.normal((50, 40)), mx.random.normal((40, 60))
    wrong = mx.array(np.array(a @ b))
    wrong[49, 59] += 1.0
    error = matrix_multiply._error(mx, a, b, wrong)  # the corners are in every sample
    assert error["max_absolute"] == pytest.approx(1.0, abs=1e-4)
    assert matrix_multiply._error(mx, a, b, a @ b)["max_absolute"] == pytest.approx(0.0, abs=1e-4)


def test_size_sets_three_equal_sides(run):
    output = run("matrix_multiply", {"size": 9, "iterations": 1})
    assert (output["m"], output["n"], output["k"]) == (9, 9, 9)


def test_reference_example_has_estimates():
    params = matrix_multiply.Params(size=1000, iterations=10)
    assert matrix_multiply.seconds(params) == pytest.approx(2e9 * 11 / matrix_multiply.FLOPS_PER_SECOND)
    assert 12e6 < matrix_multiply.memory(params) < 14e6  # three matrices of 4 MB, and the sample
