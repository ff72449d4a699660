"""Pickles whose large arrays stay outside: functions by value (cloudpickle), arrays by files.

In place of each large array the pickle has an out-of-band buffer (protocol 5). The buffers' arrays are kept by the caller, in
order, and given back in that order. Whatever else exposes its memory as large buffers, such as a data frame, travels the same way.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import numpy as np

from openruntime_jupyter.worker import arrays
from openruntime_jupyter.worker.codes import CodePickler
from openruntime_jupyter.worker.tensorfile import Layout

SMALL = 256 << 10
"""Bytes up to which an array stays in the pickle."""
MOST = 256
"""Arrays of one pickle that are kept outside: each one in use takes a file descriptor."""

PLAIN, OUTSIDE = "cloudpickle", "cloudpickle+arrays"
"""Encodings of a payload: all in it, or with arrays beside it."""

_SCALARS = (type(None), bool, int, float, str)
"""What holds no array and no function: a plain pickle is the same, at a tenth of the cost."""

Keep = Callable[[Any, Layout], None]


class _Packer(CodePickler):
    def __init__(self, file: io.BytesIO, keep: Keep | None, codes: list[CodeType] | None) -> None:
        self._keep = keep
        self._kept = 0
        self._mark: pickle.PickleBuffer | None = None
        super().__init__(file, codes, buffer_callback=self._buffer)

    def reducer_override(self, obj: Any) -> Any:
        """Leave a large array out."""
        if type(obj) is np.ndarray or arrays.is_mlx(obj):
            layout = arrays.layout_of(obj)
            if layout is not None and self._left_out(obj, layout):
                self._mark = pickle.PickleBuffer(bytearray(1))
                return (arrays.mlx_or_numpy if layout.kind == "mlx" else as_it_is), (self._mark,)
        return super().reducer_override(obj)

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the pickle."""
        if buffer is self._mark:
            return False
        raw = buffer.raw()
        return not raw.nbytes or not self._left_out(np.frombuffer(raw, np.uint8), Layout((raw.nbytes,), "uint8", "buffer"))

    def _left_out(self, array: Any, layout: Layout) -> bool:
        if self._keep is None or layout.nbytes < SMALL or self._kept >= MOST:
            return False
        self._kept += 1
        self._keep(array, layout)
        return True


def as_it_is(array: Any) -> Any:
    """What a pickle calls to put an array in its place."""
    return array


def pack(value: Any, keep: Keep | None, codes: list[CodeType] | None = None) -> bytes:
    """`value` pickled; `keep(array, layout)` is called with each large array in it, in the order in which `unpack` wants them.

    With None all of them stay in the pickle. `codes` gets the code of each function that is pickled by value.
    Raises whatever the pickling of `value` raises.
    """
    if type(value) in _SCALARS:
        return pickle.dumps(value, protocol=5)
    file = io.BytesIO()
    packer = _Packer(file, keep, codes)
    try:
        packer.dump(value)
    finally:
        packer.clear_memo()  # it refers to itself, and would keep every array of `value` until the garbage is collected
    return file.getvalue()


def unpack(data: bytes, outside: Iterable[Any] = ()) -> Any:
    """What `pack` was given; `outside` are the arrays that it kept outside, as NumPy arrays."""
    return pickle.loads(data, buffers=iter(outside))  # noqa: S301 - only those unpickle who trust the sender
