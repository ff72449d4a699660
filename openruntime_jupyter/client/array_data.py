"""Arrays that a client sends and receives over HTTP, without NumPy."""

from __future__ import annotations

import array
import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.arrays.array_layout import LENGTH, SIZES, BadTensor, Layout, check_bounds, header_length, layout_of
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, OpenRuntimeError
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage
from openruntime_jupyter.schemas.endpoints import ALLOCATE_ARRAY, DELETE_ARRAY, GET_ARRAY, LIST_ARRAYS, MARK_ARRAY_READY

if TYPE_CHECKING:
    from typing_extensions import Self

PIECE = 1 << 20
"""Size in bytes of an upload chunk."""

FORMATS = {"?": "bool", "e": "float16", "f": "float32", "d": "float64", "Zf": "complex64", "bfloat16": "bfloat16"}
"""Element types by the format of a buffer. Those of integers depend on the size."""
UNPACKED = {"bool": "?", "float16": "e", "bfloat16": "H", "float32": "f", "float64": "d", "complex64": "f"}
SIGNED, UNSIGNED = "bhilqn", "BHILQN"


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Array with its elements in memory.

    `numpy.asarray(array)` returns a NumPy array on the same memory. bfloat16, which NumPy lacks, becomes uint16 with the same bits.
    """

    dtype: str
    """MLX name of the element type, for example `float32`."""
    shape: tuple[int, ...]
    data: memoryview
    """Elements as bytes, little-endian and in C order."""

    @classmethod
    def of(cls, value: Any, shape: Sequence[int] | None = None, dtype: str | None = None) -> ArrayData:
        """Return the array of a NumPy or MLX array, an `array.array`, or any other object with the buffer protocol.

        Parameters
        ----------
        value
            The elements. Those of a buffer of bytes are little-endian and in C order.
        shape
            Shape of the array. The default is that of `value`.
        dtype
            MLX name of the element type. The default is that of `value`; a buffer of bytes needs it for other types than `uint8`.

        Raises
        ------
        InvalidRequest
            If `value` has no buffer, or not that shape and type.
        """
        if isinstance(value, ArrayData):
            value, shape, dtype = value.data, value.shape if shape is None else shape, dtype or value.dtype
        if type(value).__module__ == "numpy" and str(value.dtype) == "bfloat16":  # NumPy offers no buffer of it
            value, dtype = value.view("uint16"), dtype or "bfloat16"
        try:
            view = memoryview(value)
        except (TypeError, ValueError, BufferError) as problem:
            advice = "pass a NumPy or MLX array, an array.array, or bytes with a dtype"
            raise InvalidRequest.of("array", f"a {type(value).__name__} can't be sent as an array ({problem}): {advice}") from None
        dtype = dtype or _dtype_of(view)
        content = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
        if shape is None:
            shape = view.shape or () if view.itemsize == SIZES.get(dtype) else [view.nbytes // SIZES.get(dtype, 1)]
        layout = check_bounds(list(shape), dtype)
        if layout.nbytes != content.nbytes:
            wanted = f"{dtype} of shape {list(layout.shape)} has {layout.nbytes:,}"
            raise InvalidRequest.of("array", f"the value has {content.nbytes:,} bytes, but {wanted}")
        return cls(layout.dtype, layout.shape, content)

    def tolist(self) -> Any:
        """Return the elements as nested lists, or the element of a scalar."""
        code = UNPACKED.get(self.dtype) or {1: "b", 2: "h", 4: "i", 8: "q"}[SIZES[self.dtype]]
        code = code.upper() if self.dtype.startswith("uint") else code
        flat: list[Any] = [each for (each,) in struct.iter_unpack(f"<{code}", self.data)]
        if self.dtype == "bfloat16":
            flat = [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in flat]
        if self.dtype == "complex64":
            flat = [complex(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        return _nested(flat, self.shape)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Return the array for NumPy."""
        kind = {"bool": "b", "bfloat16": "u"}.get(self.dtype, self.dtype[0])
        size = SIZES[self.dtype]
        return {"version": 3, "shape": self.shape, "typestr": f"{'|' if size == 1 else '<'}{kind}{size}", "data": self.data}

    def __repr__(self) -> str:
        return f"<ArrayData {self.dtype} {list(self.shape)}>"


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if len(shape) < 2:
        return flat if shape else flat[0]
    step = math.prod(shape[1:])
    return [_nested(flat[row * step : (row + 1) * step], shape[1:]) for row in range(shape[0])]


def _dtype_of(view: memoryview) -> str:
    kind = view.format.lstrip("@<=")
    if kind in SIGNED or kind in UNSIGNED:
        return f"{'u' if kind in UNSIGNED else ''}int{8 * view.itemsize}"
    if kind not in FORMATS:
        raise InvalidRequest.of("array", f"elements of the format {view.format!r} are not supported; supported types: {', '.join(SIZES)}")
    return FORMATS[kind]


def upload(backend: Backend, name: str, array_data: ArrayData) -> ArrayInfo:
    """Send an array under a name. Raises `ArrayConflict` if another array has it."""
    layout = Layout(array_data.shape, array_data.dtype)

    def pieces() -> Iterator[bytes]:
        yield layout.header()
        for start in range(0, layout.nbytes, PIECE):
            yield bytes(array_data.data[start : start + PIECE])

    return backend.upload(name, pieces, layout.size)


def download(backend: Backend, array_id: str) -> ArrayData:
    """Return an array. Raises `ArrayNotFound`, also if its file is damaged."""
    received = bytearray()
    for piece in backend.download(array_id):
        received += piece
    try:
        begin = LENGTH + header_length(bytes(received[:LENGTH]))
        layout = layout_of(bytes(received[LENGTH:begin]))
    except BadTensor as problem:
        raise ArrayNotFound(f"The array {array_id} is damaged: {problem}") from None
    data = memoryview(received)[begin:]
    if data.nbytes != layout.nbytes:
        raise ArrayNotFound(f"The array {array_id} ended {layout.nbytes - data.nbytes:,} bytes early: fetch it again")
    return ArrayData(layout.dtype, layout.shape, data)


class Arrays:
    """Arrays of a runtime by name, available as `client.arrays`. A task takes one as `{"array": name}` in its parameters.

    An array expires after a while in which no task uses it; `expires_at` of its metadata has the time.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def put(self, name: str, value: Any, *, shape: Sequence[int] | None = None, dtype: str | None = None) -> ArrayInfo:
        """Send an array under a name, and return its metadata. See `ArrayData.of` for `value`, `shape` and `dtype`.

        Raises `InvalidRequest` for an invalid value or name, `ArrayConflict` if another array has that name, and `StorageUnavailable`
        if it does not fit.
        """
        return upload(self._backend, name, ArrayData.of(value, shape, dtype))

    def get(self, name: str) -> Any:
        """Return an array as `ArrayData`. Raises `ArrayNotFound`."""
        return download(self._backend, name)

    def reserve(self, shape: Sequence[int], dtype: str) -> ArrayInfo:
        """Reserve space for an array, and return its metadata with its new id, under which `put` fills it.

        Raises `InvalidRequest`, and `StorageUnavailable` if it does not fit.
        """
        return self._backend.call(ALLOCATE_ARRAY, body={"shape": list(shape), "dtype": dtype})

    def mark_ready(self, name: str) -> ArrayInfo:
        """Mark a reserved array as complete that this program wrote into its file. Raises `ArrayNotFound` and `ArrayConflict`."""
        return self._backend.call(MARK_ARRAY_READY, name)

    def info(self, name: str) -> ArrayInfo:
        """Return the metadata of an array. Raises `ArrayNotFound`."""
        return self._backend.call(GET_ARRAY, name)

    def list(self) -> ArrayPage:
        """Return the metadata of all arrays, newest first."""
        return self._backend.call(LIST_ARRAYS)

    def delete(self, name: str) -> ArrayInfo:
        """Delete an array and return its metadata. Tasks that use it can continue. Raises `ArrayNotFound`."""
        return self._backend.call(DELETE_ARRAY, name)


class Uploads:
    """Arrays in the parameters of one submission, sent before it and released after it.

    The runtime keeps the arrays of a task until the task ends.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ids: list[str] = []

    def outside(self, parameters: Any, name: str = "parameters") -> Any:
        """Send each array in JSON-like `parameters`; return the parameters with references in their place.

        Raises the runtime's errors, for example `StorageUnavailable` if there is not enough space.
        """
        if isinstance(parameters, dict):
            return {key: self.outside(value, f"{name}.{key}") for key, value in parameters.items()}
        if isinstance(parameters, (list, tuple)):
            return [self.outside(value, name) for value in parameters]
        return self.sent(parameters, name) if may_be_array(parameters) else parameters

    def sent(self, value: Any, name: str) -> Any:
        """Send the parameter `name`, and return its reference; the value of a NumPy scalar."""
        if type(value).__module__ == "numpy" and not value.shape:
            return value.item()
        key = f"upload_{new_key()}"
        upload(self._backend, key, ArrayData.of(value))
        self.ids.append(key)
        return {"array": key}

    def release(self) -> None:
        """Delete the sent arrays that no task uses. Never raises."""
        ids, self.ids = self.ids, []
        for array_id in ids:
            with contextlib.suppress(OpenRuntimeError):
                self._backend.call(DELETE_ARRAY, array_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def may_be_array(value: Any) -> bool:
    """Return whether `value` may be an array, without importing NumPy."""
    return isinstance(value, (ArrayData, array.array, memoryview)) or type(value).__module__ in ("numpy", "mlx.core")
