from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from openruntime_jupyter.operations.mlx import summaries
from openruntime_jupyter.operations.mlx.summaries import summary

TYPES = (mx.bool_, mx.int8, mx.int32, mx.int64, mx.uint8, mx.uint64, mx.float16, mx.bfloat16, mx.float32, mx.float64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (7, 150), (0,), (3, 0)], ids=str)
def test_figures_are_those_of_numpy_in_float64(shape, dtype):
    with mx.stream(mx.cpu):
        array = (mx.random.uniform(shape=shape, key=mx.random.key(3)) * 100).astype(dtype)
    told = json.loads(json.dumps(summary(array), allow_nan=False))
    exact = np.array(array.astype(mx.float64)) if dtype not in (mx.int64, mx.uint64) else np.array(array)
    assert told["shape"] == list(shape)
    assert told["size"] == exact.size
    assert told["nbytes"] == array.nbytes
    assert told["non_finite"] == 0
    if exact.size == 0:
        assert told["min"] is told["max"] is told["mean"] is None
    else:
        assert (told["min"], told["max"]) == (exact.min(), exact.max())
        assert told["mean"] == pytest.approx(float(exact.mean()))
    assert told["value"] == (exact.tolist() if exact.size <= 1000 else None)


def test_what_is_not_finite_is_null_and_counted():
    told = summary(mx.array([1.0, float("nan"), float("inf"), -3.0, float("-inf")]))
    assert told["value"] == [1.0, None, None, -3.0, None]
    assert (told["min"], told["max"], told["mean"], told["non_finite"]) == (-3.0, 1.0, -1.0, 3)


def test_where_nothing_is_finite_there_are_no_figures():
    told = summary(mx.array([float("nan")]))
    assert (told["min"], told["max"], told["mean"], told["non_finite"]) == (None, None, None, 1)


def test_complex_numbers_have_two_parts_and_figures_of_their_magnitude():
    told = summary(mx.array([3 + 4j, 0j, complex(0, float("inf"))]))
    assert told["dtype"] == "complex64"
    assert told["value"] == [{"real": 3.0, "imag": 4.0}, {"real": 0.0, "imag": 0.0}, {"real": 0.0, "imag": None}]
    assert (told["min"], told["max"], told["non_finite"]) == (0.0, 5.0, 1)


def test_large_integers_stay_exact():
    assert summary(mx.array([2**62 + 1, -(2**62) - 1]))["max"] == 2**62 + 1


def test_an_array_is_looked_at_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(summaries, "CHUNK", 7)
    told = summary(mx.transpose(mx.arange(100).reshape(4, 25)))
    assert (told["min"], told["max"], told["mean"], told["size"]) == (0, 99, 49.5, 100)


def test_an_empty_array_of_a_thousand_million_rows_is_not_written_out():
    told = summary(mx.zeros((2**30, 0)))
    assert told["value"] is None
    assert told["size"] == 0


def test_the_values_are_given_up_to_a_thousand():
    assert summary(mx.arange(1000))["value"] == list(range(1000))
    assert summary(mx.arange(1001))["value"] is None
