"""Transfer of large arrays and pickles to and from tasks: by files on the same machine, by HTTP from another."""

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

if TYPE_CHECKING:
    from typing_extensions import Self

    from openruntime_jupyter.arrays.array_file import Layout
    from openruntime_jupyter.arrays.conversion import Array

PIECE = 1 << 20
"""Bytes of one piece of an upload."""


class ArrayUploads:
    """Arrays of one submission: sent as they turn up, and released once the task has been submitted.

    The runtime keeps the arrays of a task until the task has ended.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ids: list[str] = []
        self._pickles: list[str] = []

    def keep(self, value: Any, layout: Layout) -> None:
        """Send a NumPy or MLX array; raises what the runtime raises, such as `StorageUnavailable` where there is no room."""
        self.ids.append(send(self._backend, value, layout))

    def keep_pickle(self, stream: Stream) -> dict[str, str]:
        """Send a large pickle; return its reference for the parameters. Raises what `keep` raises."""
        from openruntime_jupyter.arrays.array_file import Layout

        self._pickles.append(send(self._backend, stream, Layout((stream.nbytes,), "uint8", "buffer")))
        return {"array": self._pickles[-1]}

    def references(self) -> list[dict[str, str]]:
        """Return the references of the arrays that were sent, in order."""
        return [{"array": array_id} for array_id in self.ids]

    def outside(self, parameters: Any, name: str = "parameters") -> Any:
        """Return JSON-like `parameters` with each NumPy or MLX array in them sent, and its reference in its place.

        Raises what `keep` raises, with the name of the array and its size.
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
                raise InvalidRequest.of(name, f"a {kind} can't be a parameter of an operation: give it to call() or submit_code()")
            # NumPy's own numbers are numbers to JSON.
            return parameters.item() if isinstance(parameters, numpy.generic) else parameters
        try:
            self.keep(parameters, layout)
        except (InvalidRequest, Unavailable) as problem:
            raise no_room(name, type(parameters).__name__, layout.nbytes, problem) from problem
        return {"array": self.ids[-1]}

    def release(self) -> None:
        """Delete what was sent, unless a task uses it; never raises."""
        ids = self.ids + self._pickles
        self.ids, self._pickles = [], []
        for array_id in ids:
            with contextlib.suppress(OpenRuntimeError):
                self._backend.delete_array(array_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def no_room(name: str, kind: str, size: int, problem: InvalidRequest | Unavailable) -> OpenRuntimeError:
    """Return `problem` with the name, type and size in bytes of the value that could not be sent."""
    text = f"this {kind} of {gigabytes(size)} can't be sent to a worker ({problem})"
    if isinstance(problem, Unavailable):
        return type(problem)(f"{name}: {text}", problem.retry_after or 1.0)
    return InvalidRequest.of(name, text)


def _may_be_array(value: Any) -> bool:
    """Whether it is worth to load NumPy for a closer look."""
    return type(value).__module__ in ("numpy", "mlx.core")


def pickles_with_arrays() -> bool:
    """Whether there can be arrays in anything: not as long as nobody has loaded NumPy or MLX."""
    return "numpy" in sys.modules or "mlx.core" in sys.modules


def send(backend: Backend, value: Any, layout: Layout) -> str:
    """Send an array, or a pickle's stream, to the runtime; return its id there."""
    told = backend.allocate(list(layout.shape), layout.dtype, layout.kind)
    try:
        if _fill(backend, told, value, layout):
            backend.array_ready(told.id)
        else:
            backend.put_array(told.id, _pieces(value, layout), layout.size)
    except BaseException:
        with contextlib.suppress(OpenRuntimeError):
            backend.delete_array(told.id)
        raise
    return told.id


def _fill(backend: Backend, told: ArrayInfo, value: Any, layout: Layout) -> bool:
    """Write into the file itself; False where it is not to be had here: behind a tunnel, in a container, of another user."""
    if not backend.local or told.path is None:
        return False
    from openruntime_jupyter.arrays import blocks, conversion

    try:
        descriptor = os.open(told.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # As long as we lease it nobody takes it for abandoned, and none but us writes what we do.
        if not blocks.lease(descriptor, told.path):
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
    """Return the elements of an array as its file has them."""
    import numpy as np

    from openruntime_jupyter.arrays import conversion

    plain = np.ascontiguousarray(conversion.as_numpy(value), dtype=conversion.dtype_of(layout.dtype))
    return plain.reshape(-1).view(np.uint8).data


def receive(backend: Backend, wanted: ArrayReference) -> Array:
    """An array of the runtime: mapped where its file is at hand, else fetched. Raises `ArrayNotFound`.

    Changing it changes nobody else's. The file stays as long as it, or a slice of it, is in use.
    """
    import numpy as np

    from openruntime_jupyter.arrays import array_file, conversion

    told = backend.array(wanted.id)
    if backend.local and told.path is not None and os.access(told.path, os.R_OK):  # it may be another user's
        return conversion.view(told.path, told.id)
    layout = array_file.check_bounds(told.shape, told.dtype, told.kind)
    array: Array = np.empty(layout.shape, conversion.dtype_of(layout.dtype))
    if layout.nbytes:
        target = array.reshape(-1).view(np.uint8).data
        place = -layout.offset
        for piece in backend.get_array(told.id):
            part = piece[max(0, -place) :]
            at = max(0, place)
            if at + len(part) > layout.nbytes:
                raise ArrayNotFound(f"The array {told.id} is longer than it was said to be")
            target[at : at + len(part)] = part
            place += len(piece)
        if place != layout.nbytes:
            raise ArrayNotFound(f"The array {told.id} ended {layout.nbytes - place:,} bytes early: fetch it again")
    return array
