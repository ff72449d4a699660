"""Pickles with out-of-band arrays: functions by value (cloudpickle), large arrays and other large buffers in files.

In place of each large array the pickle has an out-of-band buffer (protocol 5). The caller of `pack` keeps the arrays in order and passes
them to `unpack` in that order. Arrays without a file format (dates, records, big-endian numbers) are sent as raw bytes, with type, shape
and order in the pickle. Objects that expose their memory as large buffers, such as data frames, are sent in the same way.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import numpy as np

from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.arrays.function_pickler import FunctionPickler, Stream

SMALL = 256 << 10
"""Smaller arrays, in bytes, stay in the pickle."""
MOST = 256
"""Maximum number of out-of-band arrays of one pickle; each one in use takes a file descriptor."""

PLAIN, OUTSIDE = "cloudpickle", "cloudpickle+arrays"
"""Encodings of a payload: everything inside, or with out-of-band arrays."""

_SCALARS = (type(None), bool, int, float, str)
"""Types without arrays and functions, for which a plain pickle is equivalent and ten times faster."""
_RAW_KINDS = "biufcmMSUV"
"""Kinds of dtypes whose elements are plain bytes; the others refer to memory elsewhere."""

Array = np.ndarray[Any, Any]
Keep = Callable[[Any, Layout], None]


class _Packer(FunctionPickler):
    def __init__(self, file: Any, keep: Keep | None, codes: list[CodeType] | None) -> None:
        self._keep = keep
        self._kept = 0
        self._mark: pickle.PickleBuffer | None = None
        super().__init__(file, codes, buffer_callback=self._buffer)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a large array to an out-of-band buffer."""
        if isinstance(obj, np.ndarray):
            reduced = self._numpy(obj)
            return super().reducer_override(obj) if reduced is None else reduced
        if conversion.is_mlx(obj) and self._has_room(obj.nbytes):
            return conversion.mlx_or_numpy, (self._outside(obj, conversion.layout_of(obj)),)
        return super().reducer_override(obj)

    def _numpy(self, array: Any) -> Any:
        """Reduce a large array to an out-of-band buffer; None if it stays in the pickle."""
        if not self._has_room(array.nbytes):
            return None
        kind: Any = type(array)
        if kind is np.ma.MaskedArray and array.baseclass is np.ndarray:
            return masked, (array.data, array.mask, array.fill_value, array.hardmask)
        if not _plain_class(kind) or array.dtype.kind not in _RAW_KINDS or array.dtype.hasobject:
            return None
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        in_order = array.T if fortran else array
        if kind is np.ndarray and (layout := conversion.exact_layout_of(in_order)) is not None:
            return (transposed if fortran else as_it_is), (self._outside(in_order, layout),)
        raw = np.ascontiguousarray(in_order.view(np.ndarray)).reshape(-1).view(np.uint8)
        mark = self._outside(raw, Layout(raw.shape, "uint8", "buffer"))
        return from_bytes, (mark, kind, array.shape, array.dtype, "F" if fortran else "C")

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer stays in the pickle."""
        if buffer is self._mark:
            return False
        raw = buffer.raw()
        if not self._has_room(raw.nbytes):
            return True
        self._outside(np.frombuffer(raw, np.uint8), Layout((raw.nbytes,), "uint8", "buffer"))
        return False

    def _has_room(self, size: int) -> bool:
        return self._keep is not None and size >= SMALL and self._kept < MOST

    def _outside(self, array: Any, layout: Layout | None) -> pickle.PickleBuffer:
        """Keep the array; return the buffer that represents it, which must be pickled next."""
        assert self._keep is not None
        assert layout is not None
        self._kept += 1
        self._keep(array, layout)
        self._mark = pickle.PickleBuffer(bytearray(1))
        return self._mark


def _plain_class(kind: type) -> bool:
    """Return whether the class uses the pickling of NumPy, which stores only the array."""
    names = ("__reduce__", "__reduce_ex__", "__setstate__")
    return all(getattr(kind, name) is getattr(np.ndarray, name) for name in names)


def as_it_is(array: Any) -> Any:
    """Return the array; called while unpickling."""
    return array


def transposed(array: Any) -> Any:
    """Return an array that was stored in Fortran order."""
    return array.T


def from_bytes(raw: Array, kind: type[Array], shape: tuple[int, ...], dtype: np.dtype[Any], order: Any) -> Any:
    """Return an array of class `kind` on the memory of `raw`."""
    return np.ndarray.__new__(kind, shape, dtype, buffer=raw, order=order)


def masked(data: Array, mask: Any, fill_value: Any, hard: bool) -> Any:
    """Return a masked array on the memory of `data` and `mask`."""
    return np.ma.MaskedArray(data, mask, fill_value=fill_value, hard_mask=hard, copy=False)


def pack(value: Any, keep: Keep | None, codes: list[CodeType] | None = None) -> bytes:
    """Pickle `value` as bytes.

    Parameters
    ----------
    keep : called as `keep(array, layout)` with each large array, in the order in which `unpack` takes them; None keeps all in the pickle
    codes : collects the code of each function that is pickled by value

    Exceptions of the pickling propagate.
    """
    if type(value) in _SCALARS:
        return pickle.dumps(value, protocol=5)
    file = io.BytesIO()
    _dump(value, file, keep, codes)
    return file.getvalue()


def pack_stream(value: Any, keep: Keep | None, codes: list[CodeType] | None = None) -> Stream:
    """Pickle `value` as a stream without copying large pieces; see `pack`."""
    stream = Stream()
    _dump(value, stream, keep, codes)
    return stream


def measure(value: Any) -> int:
    """Return the size in bytes of the pickle of `value` with its arrays. Exceptions of the pickling propagate."""
    counter = _Counter()
    _dump(value, counter, counter.keep, None)
    return counter.nbytes


class _Counter:
    def __init__(self) -> None:
        self.nbytes = 0

    def write(self, data: Any) -> int:
        size = pickle.PickleBuffer(data).raw().nbytes
        self.nbytes += size
        return size

    def keep(self, array: Any, layout: Layout) -> None:
        self.nbytes += layout.nbytes


def _dump(value: Any, file: Any, keep: Keep | None, codes: list[CodeType] | None) -> None:
    packer = _Packer(file, keep, codes)
    try:
        packer.dump(value)
    finally:
        packer.clear_memo()  # the memo has a reference cycle, which would keep every array of `value` until garbage collection


def unpack(data: Any, outside: Iterable[Any] = ()) -> Any:
    """Return the value of a pickle in any buffer; `outside` yields the arrays that `pack` kept, as NumPy arrays."""
    return pickle.loads(data, buffers=iter(outside))  # noqa: S301 - callers unpickle only data of trusted senders
