"""Transfer of large arrays and pickles to and from tasks: through files on the same machine, otherwise over HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.arrays.function_pickler import Stream
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, OpenRuntimeError, Unavailable, gigabytes
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayReference
from openruntime_jupyter.schemas.endpoints import ALLOCATE_ARRAY, DELETE_ARRAY, GET_ARRAY, MARK_ARRAY_READY

if TYPE_CHECKING:
    from typing_extensions import Self

    from openruntime_jupyter.arrays.array_file import Layout
    from openruntime_jupyter.arrays.conversion import Array

PIECE = 1 << 20
"""Size in bytes of an upload chunk."""


class ArrayUploads:
    """Arrays of one submission, sent during serialization and released after the submission.

    The runtime keeps the arrays of a task until the task ends.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ids: list[str] = []
        self._pickles: list[str] = []

    def keep(self, value: Any, layout: Layout) -> None:
        """Send a NumPy or MLX array. Raises the runtime's errors, for example `StorageUnavailable` if there is not enough space."""
        self.ids.append(send(self._backend, value, layout))

    def keep_pickle(self, stream: Stream) -> dict[str, str]:
        """Send a large pickle and return its reference for the parameters. Raises the errors of `keep`."""
        from openruntime_jupyter.arrays.array_file import Layout

        self._pickles.append(send(self._backend, stream, Layout((stream.nbytes,), "uint8", "buffer")))
        return {"array": self._pickles[-1]}

    def references(self) -> list[dict[str, str]]:
        """Return the references of the arrays that were sent, in order."""
        return [{"array": array_id} for array_id in self.ids]

    def outside(self, parameters: Any, name: str = "parameters") -> Any:
        """Send each NumPy or MLX array in JSON-like `parameters`; return the parameters with references in their place.

        Raises the errors of `keep`, with the name and size of the array.
        """
        if isinstance(parameters, dict):
            return {key: self.outside(value, f"{name}.{key}") for key, value in parameters.items()}
        if isinstance(parameters, (list, tuple)):
            return [self.outside(value, name) for value in parameters]
        if not _may_be_array(parameters):
            return parameters
        from openruntime_jupyter.arrays import conversion

        layout = conversion.layout_of(parameters)
        if layout is None:
            numpy = sys.modules["numpy"]
            if isinstance(parameters, numpy.ndarray):
                kind = f"{type(parameters).__name__} of dtype {parameters.dtype}"
                raise InvalidRequest.of(name, f"a {kind} can't be a parameter of an operation: pass it to call() or submit_code()")
            # NumPy scalars become JSON numbers.
            return parameters.item() if isinstance(parameters, numpy.generic) else parameters
        try:
            self.keep(parameters, layout)
        except (InvalidRequest, Unavailable) as problem:
            raise no_room(name, type(parameters).__name__, layout.nbytes, problem) from problem
        return {"array": self.ids[-1]}

    def release(self) -> None:
        """Delete the sent arrays that no task uses. Never raises."""
        ids = self.ids + self._pickles
        self.ids, self._pickles = [], []
        for array_id in ids:
            with contextlib.suppress(OpenRuntimeError):
                self._backend.call(DELETE_ARRAY, array_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def no_room(name: str, kind: str, size: int, problem: InvalidRequest | Unavailable) -> OpenRuntimeError:
    """Return `problem` with the name, type and size in bytes of the value that could not be sent."""
    text = f"this {kind} of {gigabytes(size)} can't be sent to a worker ({problem})"
    if isinstance(problem, Unavailable):
        return type(problem)(f"{name}: {text}", problem.retry_after)
    return InvalidRequest.of(name, text)


def _may_be_array(value: Any) -> bool:
    """Return whether `value` may be an array, without importing NumPy."""
    return type(value).__module__ in ("numpy", "mlx.core")


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
            backend.upload(info.id, _pieces(value, layout), layout.size)
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

    from openruntime_jupyter.arrays import array_file, conversion

    info = backend.call(GET_ARRAY, wanted.id)
    if backend.local and info.path is not None and os.access(info.path, os.R_OK):  # it may belong to another user
        return conversion.view(info.path, info.id)
    layout = array_file.check_bounds(info.shape, info.dtype, info.kind)
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
