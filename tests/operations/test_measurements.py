"""Common behaviour of `matrix_multiply`, `vector_operations` and `memory_bandwidth`."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.operations import matrix_multiply, memory_bandwidth, numerics
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.registry import operation

MEASURING = ("matrix_multiply", "vector_operations", "memory_bandwidth")
SMALL: dict[str, dict[str, Any]] = {
    "matrix_multiply": {"size": 64},
    "vector_operations": {"size": 5000},
    "memory_bandwidth": {"size_mb": 1},
}
LARGE: dict[str, dict[str, Any]] = {
    "matrix_multiply": {"m": 700, "n": 500, "k": 300, "iterations": 1},
    "vector_operations": {"size": 3_000_000, "iterations": 1, "operations": ["saxpy", "sum", "divide"]},
    "memory_bandwidth": {"size_mb": 8, "iterations": 1},
}
DTYPES = ("float32", "float16", "bfloat16", "float64")


def measurements(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the separately timed parts of an output."""
    return list((output.get("operations") or output.get("kernels") or {"only": output}).values())


@pytest.mark.parametrize("name", ["compute", "mlx_operation", *MEASURING])
def test_defaults_run_quickly(run, name):
    run(name, {})  # the first use of a kernel is slower
    started = time.process_time()  # CPU time, because the machine may be busy
    run(name, {})
    assert time.process_time() - started < 2.0  # about 0.4 s without a real BLAS


@pytest.mark.parametrize("name", MEASURING)
def test_rates_are_work_divided_by_seconds(run, name):
    for measured in measurements(run(name, {**SMALL[name], "iterations": 5})):
        seconds = measured["seconds_per_iteration"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        for rate, amount in (("gflops", "flops_per_iteration"), ("gb_per_second", "bytes_per_iteration")):
            if rate in measured:
                assert measured[rate] * 1e9 * seconds["median"] == pytest.approx(measured[amount])
                assert measured[f"{rate}_best"] * 1e9 * seconds["min"] == pytest.approx(measured[amount])


@pytest.mark.parametrize("name", MEASURING)
def test_timed_seconds_are_within_wall_clock(run, name):
    started = time.perf_counter()
    output = run(name, {**LARGE[name], "iterations": 3})
    passed = time.perf_counter() - started
    timed = sum(3 * measured["seconds_per_iteration"]["median"] for measured in measurements(output))
    # The work is lazy, so a timer that does not wait for it would show far less.
    assert passed / 50 < timed < passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEASURING)
def test_memory_estimate_covers_peak_closely(run, name, dtype):
    parameters = {**LARGE[name], "dtype": dtype}
    kind = operation(name)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run(name, parameters)
    peak = mx.get_peak_memory() - before
    estimate = kind.memory(kind.validate(parameters))
    assert estimate is not None
    assert peak <= estimate <= 1.7 * peak + 200_000


@pytest.mark.parametrize("name", MEASURING)
def test_work_over_memory_is_rejected_before_allocation(run, name):
    mx.reset_peak_memory()
    before = mx.get_peak_memory()
    with pytest.raises(MemoryRefused) as refusal:
        run(name, LARGE[name], TaskContext(memory_total=1_000_000))
    assert refusal.value.available == 1_000_000
    assert refusal.value.needed > 1_000_000
    assert mx.get_peak_memory() == before


@pytest.mark.parametrize("name", MEASURING)
def test_float64_on_gpu_is_rejected_with_advice(run, name):
    with pytest.raises(InvalidRequest, match="device_preference to 'cpu'"):
        run(name, {**SMALL[name], "dtype": "float64"}, TaskContext(device_type="gpu"))


@pytest.mark.parametrize("name", MEASURING)
def test_estimated_seconds_grow_with_iterations(name):
    kind = operation(name)
    one = kind.seconds(kind.validate({**LARGE[name], "iterations": 1}))
    many = kind.seconds(kind.validate({**LARGE[name], "iterations": 100_000}))
    assert one is not None
    assert many is not None
    assert 0 < one < many / 1000


@pytest.mark.parametrize("name", MEASURING)
def test_progress_counts_timed_iterations(run, name):
    messages: list[dict[str, Any]] = []
    context = TaskContext(send=lambda kind, body: messages.append(body))
    measured = measurements(run(name, {**SMALL[name], "iterations": 4}, context))
    context.flush_progress()
    assert messages[-1]["n"] == messages[-1]["total"] == 4 * len(measured)
    assert [body["n"] for body in messages] == sorted(body["n"] for body in messages)


@pytest.mark.parametrize("name", MEASURING)
def test_interrupt_takes_effect_between_iterations(run, name):
    def interrupted(kind: str, body: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(name, {**SMALL[name], "iterations": 100_000}, TaskContext(send=interrupted))


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("matrix_multiply", {"size": 0}, "parameters.size: must be greater than or equal to 1"),
        ("matrix_multiply", {"size": "100"}, "parameters.size: must be a valid integer"),
        ("matrix_multiply", {"size": 3, "m": 3}, "parameters: give either size, or m, n and k (found size and m)"),
        ("matrix_multiply", {"m": 3, "k": 3}, "parameters: give all of m, n and k: n missing"),
        ("matrix_multiply", {"dtype": "int8"}, "parameters.dtype: must be 'float32', 'float16', 'bfloat16' or 'float64'"),
        ("matrix_multiply", {"sise": 3}, "parameters.sise: unknown field: did you mean size?"),
        ("vector_operations", {"size": 2**31}, "parameters.size: must be less than or equal to 2147483647"),
        ("vector_operations", {"operations": ["add", "add"]}, "parameters.operations: name each operation once"),
        ("vector_operations", {"operations": ["fly"]}, "parameters.operations.0: must be 'add', 'subtract', 'multiply'"),
        ("memory_bandwidth", {"kernels": ["copy", "copy"]}, "parameters.kernels: name each kernel once"),
    ],
)
def test_invalid_parameter_is_named_with_reason(name, parameters, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation(name).validate(parameters)
    assert str(refusal.value).startswith(problem)


# Maximum rounding error of the dtype times the length of the sums of these shapes.
PRODUCT_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-13}


@pytest.mark.parametrize("dtype", PRODUCT_TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (100, 33, 257)])
def test_error_is_within_rounding_of_dtype(run, shape, dtype):
    m, n, k = shape
    output = run("matrix_multiply", {"m": m, "n": n, "k": k, "dtype": dtype, "iterations": 1})
    assert (output["m"], output["n"], output["k"]) == shape
    assert output["flops_per_iteration"] == 2 * m * n * k
    assert output["error"]["sampled"] == min(m, 32) * min(n, 32)
    assert output["error"]["max_relative"] < PRODUCT_TOLERANCE[dtype]


def test_wrong_product_has_large_error():
    a, b = mx.random.normal((50, 40)), mx.random.normal((40, 60))
    wrong = mx.array(np.array(a @ b))
    wrong[49, 59] += 1.0
    error = matrix_multiply._error(mx, a, b, wrong)  # the corners are in every sample
    assert error["max_absolute"] == pytest.approx(1.0, abs=1e-4)
    assert matrix_multiply._error(mx, a, b, a @ b)["max_absolute"] == pytest.approx(0.0, abs=1e-4)


KERNEL_TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-15}


@pytest.mark.parametrize("dtype", KERNEL_TOLERANCE)
def test_kernel_error_is_within_rounding_of_dtype(run, dtype):
    output = run("memory_bandwidth", {"size_mb": 1, "dtype": dtype, "iterations": 1})
    assert list(output["kernels"]) == ["copy", "scale", "add", "triad"]
    for measured in output["kernels"].values():
        assert measured["error"]["max_relative"] < KERNEL_TOLERANCE[dtype]
        assert measured["error"]["sampled"] == 1000
    assert output["kernels"]["copy"]["error"]["max_absolute"] == 0.0


def test_bytes_are_counted_as_in_stream(run):
    output = run("memory_bandwidth", {"size_mb": 3, "iterations": 1})
    assert output["elements"] == 750_000
    assert [measured["bytes_per_iteration"] for measured in output["kernels"].values()] == [6_000_000, 6_000_000, 9_000_000, 9_000_000]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_copy_moves_every_element(size):
    a = mx.arange(size).astype(mx.float32)
    mx.eval(a)
    before = mx.get_active_memory()
    copied = memory_bandwidth._KERNELS["copy"].make(mx, a, a)
    mx.eval(copied)
    assert np.array_equal(np.array(copied), np.arange(size))
    if size > 1:
        assert mx.get_active_memory() >= before + copied.nbytes


def test_only_selected_kernels_run(run):
    assert list(run("memory_bandwidth", {"size_mb": 1, "iterations": 1, "kernels": ["triad", "copy"]})["kernels"]) == ["triad", "copy"]


EVERY = ["add", "subtract", "multiply", "divide", "saxpy", "dot", "norm", "sum", "max", "exp", "sqrt", "tanh"]
# MLX sums a norm in the dtype itself, so its error grows with the length.
VECTOR_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2, "float64": 1e-6}


@pytest.mark.parametrize("dtype", VECTOR_TOLERANCE)
@pytest.mark.parametrize("size", [1, 7, 40_000])
def test_operation_error_is_within_rounding_of_dtype(run, size, dtype):
    output = run("vector_operations", {"size": size, "operations": EVERY, "dtype": dtype, "iterations": 1})
    assert list(output["operations"]) == EVERY
    for name, measured in output["operations"].items():
        error = measured["error"]
        assert error["max_relative"] is not None, name
        assert error["max_relative"] < VECTOR_TOLERANCE[dtype], name
        assert error["sampled"] == (1 if name in ("dot", "norm", "sum", "max") else min(size, 1000))


def test_reduction_is_compared_over_every_chunk(monkeypatch, run):
    monkeypatch.setattr(numerics, "CHUNK", 100)
    output = run("vector_operations", {"size": 1050, "operations": ["dot", "norm", "sum", "max"], "iterations": 1})
    assert all(measured["error"]["max_relative"] < 1e-6 for measured in output["operations"].values())


def test_float16_sums_do_not_overflow(run):
    output = run("vector_operations", {"size": 2_000_000, "operations": ["dot", "norm", "sum"], "dtype": "float16", "iterations": 1})
    assert all(measured["error"]["max_relative"] < 0.01 for measured in output["operations"].values())


def test_bytes_count_each_vector_once(run):
    output = run("vector_operations", {"size": 100, "operations": ["add", "exp", "sum"], "dtype": "bfloat16", "iterations": 1})
    assert [measured["bytes_per_iteration"] for measured in output["operations"].values()] == [600, 400, 200]
