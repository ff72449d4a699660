"""Memory estimates of calls, compared with the peak memory of MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from openruntime_jupyter.errors import MemoryRefused
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.mlx import graph
from openruntime_jupyter.operations.numerics import SUMMARY_BYTES

SQUARE = {"normal": [600, 600]}
SPD = {"eye": 300}
IMAGES = {"normal": [2, 48, 48, 16]}
CALLS: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("matmul", [SQUARE, SQUARE], {}),
    ("matmul", [{"normal": [600, 600], "dtype": "bfloat16"}, {"normal": [600, 600], "dtype": "bfloat16"}], {}),
    ("softmax", [SQUARE], {"axis": 1}),
    ("sort", [SQUARE], {"axis": 0}),
    ("unique", [{"arange": 300_000}], {"size": 300_000}),
    ("tile", [SQUARE, [2, 2]], {}),
    ("pad", [SQUARE, 100], {"mode": "reflect"}),
    ("broadcast_to", [{"normal": [1, 600]}, [900, 600]], {}),
    ("einsum", ["ij,jk,kl->il", SQUARE, SQUARE, SQUARE], {}),
    ("block_masked_mm", [{"normal": [512, 512]}, {"normal": [512, 512]}, 64, {"ones": [8, 8]}], {}),
    ("fft.fft", [SQUARE], {"n": 1000, "axis": 0}),
    ("fft.stft", [{"normal": [300_000]}], {"n_fft": 512}),
    ("conv2d", [IMAGES, {"normal": [32, 5, 5, 16]}], {"padding": 2}),
    ("conv2d", [{**IMAGES, "dtype": "float16"}, {"normal": [32, 5, 5, 16], "dtype": "float16"}], {"padding": 20, "stride": 7}),
    ("conv_transpose2d", [IMAGES, {"normal": [32, 5, 5, 16]}], {"stride": 2}),
    ("linalg.svd", [SQUARE], {}),
    ("linalg.eig", [{"normal": [150, 150]}], {}),
    ("linalg.pinv", [{"normal": [300, 200]}], {}),
    ("linalg.solve", [SPD, {"normal": [300, 300]}], {}),
    ("random.normal", [[700, 700]], {"dtype": "float16"}),
    ("fast.layer_norm", [SQUARE, None, None, 1e-5], {}),
    ("fast.scaled_dot_product_attention", [{"normal": [1, 8, 256, 64]}] * 3, {"scale": 0.1}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS, ids=lambda value: str(value)[:40])
def test_call_estimate_covers_peak_within_bounds(run, function, args, kwargs):
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    output = run("mlx_operation", {"function": function, "args": args, "kwargs": kwargs})
    peak = mx.get_peak_memory() - before
    # Most estimates are within a factor of two; random numbers reuse buffers, and some functions can't be traced.
    assert peak <= output["memory_estimate"] <= 12 * peak + SUMMARY_BYTES


@pytest.mark.parametrize(
    ("expression", "inputs"),
    [
        ("sum(tanh(a @ b) + c)", {"a": SQUARE, "b": SQUARE, "c": {"random": [600]}}),
        ("sum(tanh(a)) + sum(tanh(a)) + sum(exp(a) * exp(a))", {"a": SQUARE}),
        ("mean(where(a > 0, a, -a) * (a + 1) / (2 + abs(a)), axis=0)", {"a": SQUARE}),
        ("inv(a @ transpose(a) + b) @ transpose(a)", {"a": {"normal": [300, 300]}, "b": {"eye": 300}}),
        ("broadcast_to(a, [500, 600]) @ b", {"a": {"normal": [1, 600]}, "b": SQUARE}),
        ("abs(fft(a))", {"a": {"normal": [400_000]}}),
        ("a", {"a": {"normal": [500_000], "dtype": "float16"}}),
    ],
)
def test_expression_estimate_covers_peak(run, expression, inputs):
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    output = run("compute", {"expression": expression, "inputs": inputs})
    peak = mx.get_peak_memory() - before
    assert peak <= output["memory_estimate"] <= 6 * peak + SUMMARY_BYTES


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("compute", {"expression": "sum(broadcast_to(a, [100000, 30000]) + 1)", "inputs": {"a": 1.5}}),
        ("compute", {"expression": "sum(outer(a, a))", "inputs": {"a": {"normal": [60_000]}}}),
        ("compute", {"expression": "sum(a)", "inputs": {"a": {"zeros": [60_000, 60_000]}}}),
        ("mlx_operation", {"function": "zeros", "args": [[60_000, 60_000]]}),
        ("mlx_operation", {"function": "random.normal", "args": [[60_000, 60_000]]}),
        ("mlx_operation", {"function": "fft.fft", "args": [[1, 2, 3]], "kwargs": {"n": 2_000_000_000}}),
        ("mlx_operation", {"function": "conv2d", "args": [IMAGES, {"normal": [1, 5, 5, 16]}], "kwargs": {"padding": 6000}}),
    ],
    ids=str,
)
def test_oversized_call_is_rejected_without_allocation(run, name, parameters):
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with pytest.raises(MemoryRefused) as refusal:
        run(name, parameters, TaskContext(memory_total=4_000_000_000))
    assert refusal.value.needed > refusal.value.available == 4_000_000_000
    assert mx.get_peak_memory() - before < 2_000_000


def test_size_over_64_bits_does_not_overflow():
    side = 2**31 - 1
    a = mx.zeros((side, 1))
    b = mx.zeros((1, side))
    assert (a @ b).nbytes < 2**64
    with pytest.raises(ValueError, match="the maximum is 137,438,953,472"):
        graph.needed(mx, mx.matmul, [a, mx.broadcast_to(b, (1, side))], {})
    with pytest.raises(ValueError, match="the maximum is"):
        graph.needed(mx, lambda x: mx.broadcast_to(x, (side, side, side)), [mx.zeros(())], {})


def test_measuring_keeps_random_state():
    mx.random.seed(1)
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(1)
    graph.needed(mx, mx.random.normal, [], {"shape": (3,), "key": mx.random.key(5)})
    assert mx.random.normal((3,)).tolist() == expected
