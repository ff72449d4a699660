"""Between NumPy and MLX arrays and their files: stored by one copy, read by none.

A view leases its file (see `blocks`) through its mapping: the kernel gives the lease back when the last view is garbage-collected, or
when the process ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.arrays.function_pickler import Stream

PIECE = 64 << 20
"""Bytes that one write takes: an interrupt is heard between two."""

Array = np.ndarray[Any, Any]


def is_mlx(value: Any) -> bool:
    """Whether it is an MLX array; MLX is not imported to tell."""
    kind = type(value)
    return kind.__module__ == "mlx.core" and kind.__name__ == "array"


def dtype_of(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a name of ours: little-endian, and marked as native where this machine is."""
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(np.dtype(name).newbyteorder("<").str)
    return found


def layout_of(value: Any) -> Layout | None:
    """The layout of a NumPy or MLX array; None for anything that is none, or that no such file can hold (complex128, text, objects)."""
    if is_mlx(value):
        return Layout(tuple(value.shape), str(value.dtype).rpartition(".")[2].removesuffix("_"), "mlx")
    if type(value) is not np.ndarray or value.dtype.name not in array_file.SIZES or value.ndim > array_file.MAX_DIMENSIONS:
        return None
    return Layout(value.shape, value.dtype.name)


def exact_layout_of(array: Array) -> Layout | None:
    """Return the layout of a NumPy array; None where its file would not give back the same dtype, byte order included."""
    layout = layout_of(array)
    same = layout is not None and array.dtype == dtype_of(layout.dtype) and array.dtype.metadata is None
    return layout if same else None


def as_numpy(value: Any) -> Array:
    """An array as NumPy sees it, without a copy where there is none needed; an MLX array is evaluated."""
    if not is_mlx(value):
        array: Array = value
        return array
    mx = sys.modules["mlx.core"]
    if value.dtype == mx.bfloat16:  # which NumPy does not know by itself
        return np.array(value.view(mx.uint16), copy=False).view(ml_dtypes.bfloat16)
    return np.array(value, copy=False)


def as_mlx(array: Array) -> Any:
    """A NumPy array as MLX's, of the same dtype; MLX copies it."""
    import mlx.core as mx

    if array.dtype == np.float64:
        return mx.array(array, dtype=mx.float64)  # MLX would make float32 of it
    return mx.array(array)


def mlx_or_numpy(array: Array) -> Any:
    """`as_mlx`, or the array itself where this environment has no MLX that works."""
    try:
        return as_mlx(array)
    except ImportError:
        return array


def store(value: Any, path: Path, layout: Layout | None = None, room: int | None = None) -> Layout:
    """Write an array into a file of its own, for which `room` is as in `array_file.make`.

    Raises `StorageUnavailable`, and TypeError for what `layout_of` knows nothing of.
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
    """Write an array, or a pickle's stream, into the open file that was made for it: little-endian and in C order."""
    if isinstance(value, Stream):
        place = layout.offset
        for piece in value.pieces:
            _write(descriptor, piece, place)
            place += piece.nbytes
        return
    array = as_numpy(value)
    if not layout.nbytes:
        return
    if array.flags.c_contiguous and array.dtype == dtype_of(layout.dtype):
        raw = array.reshape(-1).view(np.uint8).data
        _write(descriptor, raw, layout.offset)
        return
    with mmap.mmap(descriptor, layout.size, flags=mmap.MAP_SHARED) as mapped:
        target: Array = np.ndarray(layout.shape, dtype_of(layout.dtype), buffer=mapped, offset=layout.offset)
        np.copyto(target, array, casting="equiv")
        del target


def _write(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(descriptor, data[:PIECE], place)
        data, place = data[written:], place + written


def view(path: str | Path, name: str) -> Array:
    """The array in a file, mapped: nothing is read before it is looked at.

    Changing it is allowed and changes no one else's: pages that are written to are copied. Raises `ArrayNotFound` for a file that
    is gone, short or damaged.
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
    """`view`, or an MLX array with a copy of it where `kind` is `mlx`."""
    array = view(path, name)
    return mlx_or_numpy(array) if kind == "mlx" else array
