"""Pickles whose large arrays stay outside."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from openruntime_jupyter.worker import parcels


def test_what_was_packed_is_let_go_without_waiting_for_the_garbage_collector() -> None:
    array = np.ones(300_000)
    kept: list[tuple[int, ...]] = []
    gone = weakref.ref(array)
    gc.disable()
    try:
        parcels.pack({"x": [array]}, lambda value, layout: kept.append(layout.shape))
        del array
        assert gone() is None
    finally:
        gc.enable()
    assert kept == [(300_000,)]
