"""Transfer of large arrays and pickles to and from tasks: through files on the same machine, otherwise over HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.arrays.array_layout import Layout, check_bounds
from openruntime_jupyter.arrays.function_pickler import Stream
from openruntime_jupyter.client.array_data import PIECE, Arrays, Uploads
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, OpenRuntimeError, Unavailable, gigabytes
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayReference
from openruntime_jupyter.schemas.endpoints import ALLOCATE_ARRAY, DELETE_ARRAY, GET_ARRAY, MARK_ARRAY_READY

if TYPE_CHECKING:
    from openruntime_jupyter.arrays.conversion import Array


class ArrayUploads(Uploads):
    """Arrays and pickles of one submission, sent during serialization and released after the submission."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._pickles: list[str] = []

    def keep(self, value: Any, layout: Layout) -> None:
        """Send a NumPy or MLX array. Raises the runtime's errors, for example `StorageUnavailable` if there is not enough space."""
        self.ids.append(send(self._backend, value, layout))

    def keep_pickle(self, stream: Stream) -> dict[str, str]:
        """Send a large pickle and return its reference for the parameters. Raises the errors of `keep`."""
        self._pickles.append(send(self._backend, stream, Layout((stream.nbytes,), "uint8", "buffer")))
        return {"array": self._pickles[-1]}

    def references(self) -> list[dict[str, str]]:
        """Return the references of the arrays that were sent, in order."""
        return [{"array": array_id} for array_id in self.ids]

    def sent(self, value: Any, name: str) -> Any:
        """Send the parameter `name`, and return its reference; the value of a NumPy scalar.

        Raises the errors of `keep`, with the name and size of the array.
        """
        if type(value).__module__ not in ("numpy", "mlx.core"):
            return super().sent(value, name)
        from openruntime_jupyter.arrays import conversion

        layout = conversion.layout_of(value)
        if layout is None:
            numpy = sys.modules["numpy"]
            if isinstance(value, numpy.ndarray):
                kind = f"{type(value).__name__} of dtype {value.dtype}"
                raise InvalidRequest.of(name, f"a {kind} can't be a parameter of an operation: pass it to call() or submit_code()")
            # NumPy scalars become JSON numbers.
            return value.item() if isinstance(value, numpy.generic) else value
        try:
            self.keep(value, layout)
        except (InvalidRequest, Unavailable) as problem:
            raise no_room(name, type(value).__name__, layout.nbytes, problem) from problem
        return {"array": self.ids[-1]}

    def release(self) -> None:
        """Delete the sent arrays that no task uses. Never raises."""
        self.ids += self._pickles
        self._pickles = []
        super().release()


class PythonArrays(Arrays):
    """Arrays of a runtime by name, as NumPy or MLX arrays."""

    def get(self, name: str) -> Any:
        """Return an array, as an MLX array if it was sent as one and MLX is installed, else as a NumPy array. Raises `ArrayNotFound`.

        A NumPy array is memory-mapped on a local runtime. Changes to it are private.
        """
        return receive_all(self._backend, [self.info(name)])


def no_room(name: str, kind: str, size: int, problem: InvalidRequest | Unavailable) -> OpenRuntimeError:
    """Return `problem` with the name, type and size in bytes of the value that could not be sent."""
    text = f"this {kind} of {gigabytes(size)} can't be sent to a worker ({problem})"
    if isinstance(problem, Unavailable):
        return type(problem)(f"{name}: {text}", problem.retry_after)
    return InvalidRequest.of(name, text)


def pickles_with_arrays() -> bool:
    """Return whether values can contain arrays, which needs NumPy or MLX to be imported."""
    return "numpy" in sys.modules or "mlx.core" in sys.modules


def send(backend: Backend, value: Any, layout: Layout) -> str:
    """Send an array or the stream of a pickle to the runtime and return its id."""
    request = {"shape": list(layout.shape), "dtype": layout.dtype, "kind": layout.kind}
    info = backend.call(ALLOCATE_ARRAY, body=request)
    try:
        if _fill(backend, info, value, layout):
            backend.call(MARK_ARRAY_READY, info.id)
        else:
            backend.upload(info.id, lambda: _pieces(value, layout), layout.size)
    except BaseException:
        with contextlib.suppress(OpenRuntimeError):
            backend.call(DELETE_ARRAY, info.id)
        raise
    return info.id


def _fill(backend: Backend, info: ArrayInfo, value: Any, layout: Layout) -> bool:
    """Write the array's file directly. Return False if it is not accessible (SSH tunnel, container, another user)."""
    if not backend.local or info.path is None:
        return False
    from openruntime_jupyter.arrays import blocks, conversion

    try:
        descriptor = os.open(info.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # The lease marks the file as in use and keeps other processes from writing it.
        if not blocks.lease(descriptor, info.path):
            return False
        if os.fstat(descriptor).st_uid != os.geteuid() or os.pread(descriptor, layout.offset, 0) != layout.header():
            return False
        conversion.fill(descriptor, layout, value)
    finally:
        os.close(descriptor)
    return True


def _pieces(value: Any, layout: Layout) -> Iterator[bytes]:
    yield layout.header()
    for whole in value.pieces if isinstance(value, Stream) else [_memory(value, layout)]:
        for start in range(0, whole.nbytes, PIECE):
            yield bytes(whole[start : start + PIECE])


def _memory(value: Any, layout: Layout) -> memoryview:
    """Return the elements of an array in file layout."""
    import numpy as np

    from openruntime_jupyter.arrays import conversion

    plain = np.ascontiguousarray(conversion.as_numpy(value), dtype=conversion.dtype_of(layout.dtype))
    return plain.reshape(-1).view(np.uint8).data


def receive(backend: Backend, wanted: ArrayReference) -> Array:
    """Return an array of the runtime, memory-mapped if its file is accessible, else downloaded. Raises `ArrayNotFound`.

    Changes to the array are private. The file exists until the array and its slices are released.
    """
    import numpy as np

    from openruntime_jupyter.arrays import conversion

    info = backend.call(GET_ARRAY, wanted.id)
    if backend.local and info.path is not None and os.access(info.path, os.R_OK):  # it may belong to another user
        return conversion.view(info.path, info.id)
    layout = check_bounds(info.shape, info.dtype, info.kind)
    array: Array = np.empty(layout.shape, conversion.dtype_of(layout.dtype))
    if layout.nbytes:
        target = array.reshape(-1).view(np.uint8).data
        place = -layout.offset
        for piece in backend.download(info.id):
            part = piece[max(0, -place) :]
            at = max(0, place)
            if at + len(part) > layout.nbytes:
                raise ArrayNotFound(f"The array {info.id} is longer than its metadata says")
            target[at : at + len(part)] = part
            place += len(piece)
        if place != layout.nbytes:
            raise ArrayNotFound(f"The array {info.id} ended {layout.nbytes - place:,} bytes early: fetch it again")
    return array


def receive_all(backend: Backend, wanted: Sequence[ArrayReference]) -> Any:
    """Return the array, or a tuple of arrays if there are several; those sent as MLX arrays as such if MLX is installed."""
    from openruntime_jupyter.arrays import conversion

    found = [(each, receive(backend, each)) for each in wanted]
    values = tuple(conversion.mlx_or_numpy(array) if each.kind == "mlx" else array for each, array in found)
    return values[0] if len(values) == 1 else values
