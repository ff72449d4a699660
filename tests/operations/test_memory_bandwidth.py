from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.operations import memory_bandwidth

TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-15}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernel_error_is_within_rounding_of_dtype(run, dtype):
    output = run("memory_bandwidth", {"size_mb": 1, "dtype": dtype, "iterations": 1})
    assert list(output["kernels"]) == ["copy", "scale", "add", "triad"]
    for measured in output["kernels"].values():
        assert measured["error"]["max_relative"] < TOLERANCE[dtype]
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
