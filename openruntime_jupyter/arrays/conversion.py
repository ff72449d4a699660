"""Conversion between NumPy or MLX arrays and array files: one copy to store, no copy to read.

A view leases its file (see `blocks`) through its mapping. The kernel releases the lease when the last view is garbage-collected or
the process ends for any reason.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from openruntime_jupyter.arrays import array_file, array_layout
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.arrays.function_pickler import Stream

PIECE = 64 << 20
"""Bytes of one write; interrupts are handled between two writes."""

Array = np.ndarray[Any, Any]


def is_mlx(value: Any) -> bool:
    """Return whether `value` is an MLX array, without importing MLX."""
    kind = type(value)
    return kind.__module__ == "mlx.core" and kind.__name__ == "array"


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype for an element type of `array_file`, marked as native on little-endian machines."""
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(np.dtype(name).newbyteorder("<").str)
    return dtype


def layout_of(value: Any) -> Layout | None:
    """Return the layout of a NumPy or MLX array; None for other values and unsupported dtypes (complex128, text, objects)."""
    if is_mlx(value):
        return Layout(tuple(value.shape), str(value.dtype).rpartition(".")[2].removesuffix("_"), "mlx")
    if type(value) is not np.ndarray or value.dtype.name not in array_layout.SIZES or value.ndim > array_layout.MAX_DIMENSIONS:
        return None
    return Layout(value.shape, value.dtype.name)


def exact_layout_of(array: Array) -> Layout | None:
    """Return the layout of a NumPy array; None if its file would not restore the same dtype and byte order."""
    layout = layout_of(array)
    same = layout is not None and array.dtype == dtype_of(layout.dtype) and array.dtype.metadata is None
    return layout if same else None


def as_numpy(value: Any) -> Array:
    """Return an array as a NumPy array, without a copy where possible. MLX arrays are evaluated."""
    if not is_mlx(value):
        array: Array = value
        return array
    mx = sys.modules["mlx.core"]
    if value.dtype == mx.bfloat16:  # NumPy has no bfloat16
        return np.array(value.view(mx.uint16), copy=False).view(ml_dtypes.bfloat16)
    return np.array(value, copy=False)


def as_mlx(array: Array) -> Any:
    """Return a copy of a NumPy array as an MLX array of the same dtype."""
    import mlx.core as mx

    if array.dtype == np.float64:
        return mx.array(array, dtype=mx.float64)  # without dtype MLX converts to float32
    return mx.array(array)


def mlx_or_numpy(array: Array) -> Any:
    """Return `as_mlx(array)`, or the array itself without a working MLX."""
    try:
        return as_mlx(array)
    except ImportError:
        return array


def store(value: Any, path: Path, layout: Layout | None = None, room: int | None = None) -> Layout:
    """Write an array to a new file and return its layout; `room` as in `array_file.make`.

    Raises `StorageUnavailable`, and TypeError for a value without a layout (see `layout_of`).
    """
    layout = layout or layout_of(value)
    if layout is None:
        raise TypeError(f"{type(value).__name__} can't be stored as an array")
    descriptor = array_file.make(path, layout, room)
    try:
        fill(descriptor, layout, value)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return layout


def fill(descriptor: int, layout: Layout, value: Any) -> None:
    """Write an array or the stream of a pickle to the open file that was created for it, little-endian and in C order."""
    if isinstance(value, Stream):
        position = layout.offset
        for piece in value.pieces:
            _write(descriptor, piece, position)
            position += piece.nbytes
        return
    array = as_numpy(value)
    if not layout.nbytes:
        return
    if layout.dtype == "bool" and array.view(np.uint8).max() > 1:  # views of other arrays can have any bytes
        array = array.view(np.uint8) != 0
    if array.flags.c_contiguous and array.dtype == dtype_of(layout.dtype):
        raw = array.reshape(-1).view(np.uint8).data
        _write(descriptor, raw, layout.offset)
        return
    with mmap.mmap(descriptor, layout.size, flags=mmap.MAP_SHARED) as mapped:
        target: Array = np.ndarray(layout.shape, dtype_of(layout.dtype), buffer=mapped, offset=layout.offset)
        np.copyto(target, array, casting="equiv")
        del target


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data[:PIECE], position)
        data, position = data[written:], position + written


def view(path: str | Path, name: str) -> Array:
    """Return the memory-mapped array of a file; pages are read on first access.

    Changes are private (copy-on-write). Raises `ArrayNotFound` if the file is missing, truncated or damaged.
    """
    descriptor = array_file.open_for_reading(path, name)
    try:
        layout = array_file.read(descriptor, name)
        dtype = dtype_of(layout.dtype)
        if not layout.nbytes:
            return np.empty(layout.shape, dtype)
        # The mapping keeps a duplicate of the descriptor, and with it the lease.
        mapped = mmap.mmap(descriptor, layout.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        array: Array = np.ndarray(layout.shape, dtype, buffer=mapped, offset=layout.offset)
        return array
    finally:
        os.close(descriptor)


def read(path: str | Path, name: str, kind: str | None = None) -> Any:
    """Return `view(path, name)`, or a copy of it as an MLX array if `kind` is `mlx`."""
    array = view(path, name)
    return mlx_or_numpy(array) if kind == "mlx" else array
