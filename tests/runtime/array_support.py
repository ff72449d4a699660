"""Helpers for array tests: an open store, and arrays as clients and workers store them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.engines.protocol import StoredArray
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore, result_name
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.arrays import ArrayInfo

MB = 1_000_000
SMALL = Layout((250_000,), "float32")
"""1 MB of elements."""


@asynccontextmanager
async def store_in(folder: Path, runtime_id: str = "rt_1", **settings: Any) -> AsyncIterator[ArrayStore]:
    store = ArrayStore(Settings(data_dir=folder, **settings), runtime_id, Machine(list))
    store.open()
    try:
        yield store
    finally:
        await store.stop()


async def put(store: ArrayStore, array: Any, name: str | None = None) -> ArrayInfo:
    """Store an array as a local client does."""
    layout = conversion.layout_of(array)
    assert layout is not None
    room = await store.allocate(layout, "me", name)
    descriptor = os.open(str(room.path), os.O_RDWR)
    conversion.fill(descriptor, layout, array)
    os.close(descriptor)
    return await store.ready(room.id)


async def result(store: ArrayStore, task: str, array: np.ndarray[Any, Any], number: int = 0, attempt: int = 1) -> str:
    """Store a result as a worker and its engine do at the end of a task."""
    array_id = f"{result_name(task, attempt)}.{number}"
    layout = conversion.store(array, Path(store.places()[0][0]) / f"{array_id}.part")
    await store.adopt("me", [StoredArray(array_id, layout.shape, layout.dtype, layout.kind, 0)])
    return array_id
