"""Bit-exact round trips of arrays through files, and errors for damaged files before they are mapped."""

from __future__ import annotations

import itertools
import json
import os
import resource
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openruntime_jupyter.arrays import array_file, array_layout, conversion
from openruntime_jupyter.arrays.array_layout import ALIGNMENT, BadTensor, Layout
from openruntime_jupyter.errors import ArrayNotFound, StorageUnavailable
from openruntime_jupyter.schemas.values import ArrayDtype

MLX_DTYPES = {name: mx.bool_ if name == "bool" else getattr(mx, name) for name in array_layout.SIZES}
NUMBERS = itertools.count()
WORDS = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


def bits(array: np.ndarray[Any, Any]) -> bytes:
    """Return the elements as little-endian bytes in memory order."""
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return native.tobytes()


def there_and_back(value: Any, folder: Path) -> np.ndarray[Any, Any]:
    path = folder / f"{next(NUMBERS)}.safetensors"
    conversion.store(value, path)
    return conversion.view(path, "a")


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    hnp.complex_number_dtypes(sizes=(64,), endianness="?"),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_numpy_array_round_trip_is_exact(tmp_path: Path, data: st.DataObject) -> None:
    dtype, shape = data.draw(DTYPES), data.draw(SHAPES)
    raw = data.draw(st.binary(min_size=int(np.prod(shape)) * dtype.itemsize, max_size=int(np.prod(shape)) * dtype.itemsize))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)  # arbitrary bits: NaN payloads, infinities, subnormals
    for turned in (array, array.T, array[::-1] if array.ndim else array, array[..., ::2] if array.ndim else array):
        back = there_and_back(turned, tmp_path)
        assert back.shape == turned.shape
        assert back.dtype == turned.dtype.newbyteorder("<")
        assert bits(back) == bits(turned)


@pytest.mark.parametrize("shape", [(), (2, 0, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("name", array_layout.SIZES)
def test_mlx_array_round_trip_is_exact(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    size, count = array_layout.SIZES[name], int(np.prod(shape))
    raw = np.random.default_rng(7).integers(0, 2 if name == "bool" else 256, count * size, dtype=np.uint8)
    if name in ("bfloat16", "float16", "float32", "float64"):
        odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40], dtype=conversion.dtype_of(name)).view(np.uint8)
        raw[: min(len(raw), len(odd))] = odd[: len(raw)]
    array = raw.view(conversion.dtype_of(name)).reshape(shape)
    as_mlx = conversion.as_mlx(array)
    assert as_mlx.dtype == MLX_DTYPES[name]
    back = there_and_back(as_mlx, tmp_path)
    assert (back.dtype.name, back.shape) == (name, shape)
    assert back.tobytes() == array.tobytes()
    again = conversion.as_mlx(back)
    assert (again.dtype, tuple(again.shape)) == (MLX_DTYPES[name], shape)
    assert conversion.as_numpy(again).tobytes() == array.tobytes()


def test_supported_dtypes_are_consistent() -> None:
    assert get_args(ArrayDtype) == tuple(array_layout.CODES)


def test_lazy_transposed_mlx_array_is_stored(tmp_path: Path) -> None:
    lazy = (mx.arange(6).reshape(2, 3).astype(mx.bfloat16) * 2).T
    assert there_and_back(lazy, tmp_path).tolist() == [[0, 6], [2, 8], [4, 10]]


def test_files_are_compatible_with_safetensors(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    conversion.store(array, tmp_path / "ours.safetensors")
    assert (safetensors.numpy.load_file(tmp_path / "ours.safetensors")["array"] == array).all()
    ours: Any = mx.load(str(tmp_path / "ours.safetensors"))
    assert mx.array_equal(ours["array"], mx.array(array))
    theirs = safetensors.numpy.save({"w": array})
    length = array_layout.header_length(theirs)
    assert array_layout.layout_of(theirs[8 : 8 + length]) == Layout((3, 4), "float32")


def test_data_are_page_aligned_and_fully_allocated(tmp_path: Path) -> None:
    layout = Layout((300_000,), "float32")
    assert layout.offset % ALIGNMENT == 0
    os.close(array_file.make(tmp_path / "a", layout))
    state = (tmp_path / "a").stat()
    assert state.st_size == layout.size
    assert state.st_blocks * 512 >= layout.size, "it is sparse"
    assert state.st_mode & 0o777 == 0o600


def test_changes_to_view_are_private(tmp_path: Path) -> None:
    conversion.store(np.zeros(4096, np.float32), tmp_path / "a")
    one, other = conversion.view(tmp_path / "a", "a"), conversion.view(tmp_path / "a", "a")
    one[:] = 1
    assert other.sum() == 0
    assert conversion.view(tmp_path / "a", "a").sum() == 0


def test_missing_or_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ArrayNotFound, match="no longer exists"):
        conversion.view(path, "a")
    conversion.store(np.zeros(100_000), path)
    os.truncate(path, 500_000)
    with pytest.raises(ArrayNotFound, match=r"damaged.*bytes"):
        conversion.view(path, "a")
    for content in (b"", b"1234567", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}", (5).to_bytes(8, "little") + b"[1,2]"):
        path.write_bytes(content)
        with pytest.raises(ArrayNotFound, match="damaged"):
            conversion.view(path, "a")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}, "bytes 0 to 9"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "bytes 8 to 16"),
        ({"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}, "F8_E4M3"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "shape"),
        ({"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]}, "dimensions"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}, "exceed the maximum"),
        ({"shape": [1]}, "unreadable safetensors header"),
        (None, "unreadable safetensors header"),
    ],
    ids=str,
)
def test_inconsistent_header_is_rejected(entry: Any, problem: str) -> None:
    with pytest.raises(BadTensor, match=problem):
        array_layout.layout_of(json.dumps({"x": entry}).encode())


def test_file_with_several_arrays_is_rejected() -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(BadTensor, match="2 arrays"):
        array_layout.layout_of(json.dumps({"x": entry, "y": entry}).encode())


def test_full_disk_is_reported_with_sizes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StorageUnavailable, match=r"8\.02 MB does not fit .* left"):
            conversion.store(np.zeros(1_000_000), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.array(["text"]), np.zeros(2, np.complex128), np.array([None]), [1.0], np.float32(1), 3.0], ids=repr)
def test_unsupported_value_has_no_layout(value: Any) -> None:
    assert conversion.layout_of(value) is None
