"""Pickles with out-of-band arrays."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from openruntime_jupyter.arrays import pickling


def test_packed_value_is_freed_without_garbage_collection() -> None:
    array = np.ones(300_000)
    kept: list[tuple[int, ...]] = []
    gone = weakref.ref(array)
    gc.disable()
    try:
        pickling.pack({"x": [array]}, lambda value, layout: kept.append(layout.shape))
        del array
        assert gone() is None
    finally:
        gc.enable()
    assert kept == [(300_000,)]


def test_stream_and_bytes_are_the_same_pickle() -> None:
    values = [
        np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
        b"x" * 100_000,
        bytearray(b"y" * 100_000),
        "é" * 100_000,
        list(range(50_000)),
        np.arange(20_000).astype("M8[s]")[::2],
    ]
    for value in (*values, values):
        stream = pickling.pack_stream(value, None)
        assert stream.join() == pickling.pack(value, None)
        assert stream.nbytes == pickling.measure(value) == len(stream.join())


def test_large_bytes_of_a_stream_are_not_copied() -> None:
    value = b"x" * 1_000_000
    assert any(piece.obj is value for piece in pickling.pack_stream([value], None).pieces)


def test_arrays_beyond_maximum_stay_in_pickle() -> None:
    kept: list[Any] = []
    values = [np.full(40_000, number) for number in range(pickling.MOST + 3)]
    data = pickling.pack(values, lambda array, layout: kept.append(array))
    assert len(kept) == pickling.MOST
    assert all((back == value).all() for back, value in zip(pickling.unpack(data, kept), values, strict=True))


def test_measure_counts_arrays_outside_the_pickle() -> None:
    assert 8_000_000 <= pickling.measure({"x": np.ones(1_000_000)}) < 8_001_000
