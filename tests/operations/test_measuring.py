"""Common behaviour of `matrix_multiply`, `vector_operations` and `memory_bandwidth`."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import pytest

from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.operations.registry import operation
from openruntime_jupyter.worker.context import TaskContext

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
        ("matrix_multiply", {"size": 0}, "parameters.size: Input should be greater than or equal to 1"),
        ("matrix_multiply", {"size": 65_537}, "parameters.size: Input should be less than or equal to 65536"),
        ("matrix_multiply", {"size": "100"}, "parameters.size: Input should be a valid integer"),
        ("matrix_multiply", {"size": True}, "parameters.size: Input should be a valid integer"),
        ("matrix_multiply", {"size": 3, "m": 3}, "parameters: give either size, or m, n and k (found size and m)"),
        ("matrix_multiply", {"m": 3, "k": 3}, "parameters: give all of m, n and k: n missing"),
        ("matrix_multiply", {"iterations": 0}, "parameters.iterations: Input should be greater than or equal to 1"),
        ("matrix_multiply", {"dtype": "int8"}, "parameters.dtype: Input should be 'float32', 'float16', 'bfloat16' or 'float64'"),
        ("matrix_multiply", {"sise": 3}, "parameters.sise: unknown field: did you mean size?"),
        ("vector_operations", {"size": 2**31}, "parameters.size: Input should be less than or equal to 2147483647"),
        ("vector_operations", {"operations": []}, "parameters.operations: List should have at least 1 item after validation, not 0"),
        ("vector_operations", {"operations": ["add", "add"]}, "parameters.operations: name each operation once"),
        ("vector_operations", {"operations": ["fly"]}, "parameters.operations.0: Input should be 'add', 'subtract', 'multiply'"),
        ("memory_bandwidth", {"size_mb": 0}, "parameters.size_mb: Input should be greater than or equal to 1"),
        ("memory_bandwidth", {"kernels": ["copy", "copy"]}, "parameters.kernels: name each kernel once"),
        ("memory_bandwidth", {"iterations": 1.5}, "parameters.iterations: Input should be a valid integer"),
    ],
)
def test_invalid_parameter_is_named_with_reason(name, parameters, problem):
    with pytest.raises(InvalidRequest) as refusal:
        operation(name).validate(parameters)
    assert str(refusal.value).startswith(problem)
