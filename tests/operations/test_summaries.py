from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.operations import numerics
from openruntime_jupyter.operations.numerics import summary

TYPES = (mx.bool_, mx.int8, mx.int32, mx.int64, mx.uint8, mx.uint64, mx.float16, mx.bfloat16, mx.float32, mx.float64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3, 4), (7, 150), (3, 0)], ids=str)
def test_statistics_equal_numpy_in_float64(shape, dtype):
    with mx.stream(mx.cpu):
        array = (mx.random.uniform(shape=shape, key=mx.random.key(3)) * 100).astype(dtype)
    described = json.loads(json.dumps(summary(array), allow_nan=False))
    exact = np.array(array.astype(mx.float64)) if dtype not in (mx.int64, mx.uint64) else np.array(array)
    assert described["shape"] == list(shape)
    assert described["size"] == exact.size
    assert described["nbytes"] == array.nbytes
    assert described["non_finite"] == 0
    if exact.size == 0:
        assert described["min"] is described["max"] is described["mean"] is None
    else:
        assert (described["min"], described["max"]) == (exact.min(), exact.max())
        assert described["mean"] == pytest.approx(float(exact.mean()))
    assert described["value"] == (exact.tolist() if exact.size <= 1000 else None)


def test_non_finite_values_are_null_and_counted():
    described = summary(mx.array([1.0, float("nan"), float("inf"), -3.0, float("-inf")]))
    assert described["value"] == [1.0, None, None, -3.0, None]
    assert (described["min"], described["max"], described["mean"], described["non_finite"]) == (-3.0, 1.0, -1.0, 3)


def test_complex_statistics_use_magnitudes():
    described = summary(mx.array([3 + 4j, 0j, complex(0, float("inf"))]))
    assert described["dtype"] == "complex64"
    assert described["value"] == [{"real": 3.0, "imag": 4.0}, {"real": 0.0, "imag": 0.0}, {"real": 0.0, "imag": None}]
    assert (described["min"], described["max"], described["non_finite"]) == (0.0, 5.0, 1)


def test_large_integers_stay_exact():
    assert summary(mx.array([2**62 + 1, -(2**62) - 1]))["max"] == 2**62 + 1


def test_array_is_processed_in_chunks(monkeypatch):
    monkeypatch.setattr(numerics, "SUMMARY_CHUNK", 7)
    described = summary(mx.transpose(mx.arange(100).reshape(4, 25)))
    assert (described["min"], described["max"], described["mean"], described["size"]) == (0, 99, 49.5, 100)


def test_empty_array_with_many_rows_has_no_values():
    described = summary(mx.zeros((2**30, 0)))
    assert described["value"] is None
    assert described["size"] == 0
