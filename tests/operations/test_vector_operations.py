from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.operations import vector_operations

EVERY = ["add", "subtract", "multiply", "divide", "saxpy", "dot", "norm", "sum", "max", "exp", "sqrt", "tanh"]
# MLX sums a norm in the dtype itself, so its error grows with the length.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2, "float64": 1e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 7, 1001, 40_000])
def test_operation_error_is_within_rounding_of_dtype(run, size, dtype):
    output = run("vector_operations", {"size": size, "operations": EVERY, "dtype": dtype, "iterations": 1})
    assert list(output["operations"]) == EVERY
    for name, measured in output["operations"].items():
        error = measured["error"]
        assert error["max_relative"] is not None, name
        assert error["max_relative"] < TOLERANCE[dtype], name
        assert error["sampled"] == (1 if name in ("dot", "norm", "sum", "max") else min(size, 1000))


@pytest.mark.parametrize("name", EVERY)
def test_reference_equals_formula(name):
    """Compare the float64 reference with the formula in the output."""
    x, y = np.random.default_rng(5).uniform(-1, 1, (2, 50))
    kind = vector_operations._OPERATIONS[name]
    written = {
        "x + y": x + y,
        "x - y": x - y,
        "x y": x * y,
        "x / (2 + y)": x / (2 + y),
        "3 x + y": 3 * x + y,
        "sum(x y)": math.fsum(x * y),
        "sqrt(sum(x^2))": np.linalg.norm(x),
        "sum(x)": math.fsum(x),
        "max(x)": max(x),
        "exp(x)": np.exp(x),
        "sqrt(1 + x)": np.sqrt(1 + x),
        "tanh(x)": np.tanh(x),
    }[kind.formula]
    reference = kind.reference(np, x, y)
    assert np.allclose(reference if kind.join is None else kind.join([float(reference)]), written, rtol=1e-14)
    assert np.allclose(np.array(kind.make(mx, mx.array(x, dtype=mx.float32), mx.array(y, dtype=mx.float32))), written, rtol=1e-4, atol=1e-6)


def test_reduction_is_compared_over_every_chunk(monkeypatch, run):
    monkeypatch.setattr(vector_operations, "CHUNK", 100)
    output = run("vector_operations", {"size": 1050, "operations": ["dot", "norm", "sum", "max"], "iterations": 1})
    assert all(measured["error"]["max_relative"] < 1e-6 for measured in output["operations"].values())


def test_float16_sums_do_not_overflow(run):
    output = run("vector_operations", {"size": 2_000_000, "operations": ["dot", "norm", "sum"], "dtype": "float16", "iterations": 1})
    assert all(measured["error"]["max_relative"] < 0.01 for measured in output["operations"].values())


def test_bytes_count_each_vector_once(run):
    output = run("vector_operations", {"size": 100, "operations": ["add", "exp", "sum"], "dtype": "bfloat16", "iterations": 1})
    assert [measured["bytes_per_iteration"] for measured in output["operations"].values()] == [600, 400, 200]
