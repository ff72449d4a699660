"""Upload of an array: parses the header, allocates the file, and writes chunks on a thread as they arrive.

An upload of an array that exists is compared with it, so that clients can repeat an upload whose response was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openruntime_jupyter.arrays import array_file, array_layout, blocks
from openruntime_jupyter.arrays.array_layout import BadTensor, Layout
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest
from openruntime_jupyter.schemas.arrays import ArrayInfo

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.arrays.store import ArrayStore

CHUNK = 1 << 20
"""Buffer size of an upload in bytes, in addition to the header."""


@dataclass(slots=True)
class _Target:
    """Destination of the elements: `at` is the offset of the next byte, `end` the size of the file.

    `existing` is the complete array with which the elements are compared, or None for a new array.
    """

    array_id: str
    path: str
    descriptor: int
    at: int
    end: int
    existing: ArrayInfo | None = None


class Upload:
    """Writer of a safetensors file that arrives in chunks. Call `finish` or `abandon` at the end; after an error only `abandon`."""

    def __init__(self, store: ArrayStore, array_id: str, owner: str | None) -> None:
        self._store = store
        self._id = array_id
        self._owner = owner
        self._buffer = bytearray()
        self._target: _Target | None = None
        self._stack = contextlib.ExitStack()
        self._done = False

    @property
    def repeated(self) -> bool:
        """Return whether the array existed before."""
        return self._target is not None and self._target.existing is not None

    async def write(self, chunk: bytes) -> None:
        """Write the next chunk; raises `InvalidRequest`, the errors of `ArrayStore.allocate`, and `ArrayConflict` for another array."""
        self._buffer += chunk
        if self._target is None:
            layout = self._header()
            if layout is None:
                return
            await self._begin(layout)
        if len(self._buffer) >= CHUNK:
            await self._flush()

    def _header(self) -> Layout | None:
        """Return the layout once the header is complete, otherwise None."""
        received = self._buffer
        try:
            if len(received) < array_layout.LENGTH:
                return None
            length = array_layout.LENGTH + array_layout.header_length(bytes(received[: array_layout.LENGTH]))
            if len(received) < length:
                return None
            layout = array_layout.layout_of(bytes(received[array_layout.LENGTH : length]))
        except BadTensor as problem:
            raise InvalidRequest.of("body", str(problem)) from None
        del self._buffer[:length]
        return layout

    async def _begin(self, layout: Layout) -> None:
        existing = self._store.complete(self._id)
        if existing is not None and (tuple(existing.shape), existing.dtype) == (layout.shape, layout.dtype):
            path = str(existing.path)
            descriptor = await asyncio.to_thread(array_file.open_for_reading, path, existing.id)
            self._stack.callback(os.close, descriptor)
            self._target = _Target(existing.id, path, descriptor, existing.size - existing.bytes, existing.size, existing)
            return
        info = await self._store.place_for(self._id, layout, self._owner)
        if self._done:  # the client disconnected during the allocation
            await self._store.remove(info.id)
            raise ArrayConflict("The upload was aborted")
        self._stack.enter_context(self._store.writing(info.id))
        try:
            descriptor = os.open(str(info.path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as problem:
            await self._store.remove(info.id)
            raise ArrayNotFound(f"The file of the array {info.id!r} is missing ({problem.strerror}): allocate the array again") from None
        self._stack.callback(os.close, descriptor)
        if not blocks.lease(descriptor, str(info.path)):
            raise ArrayConflict("The array was deleted during the upload")
        # The header written here may be longer than that of the client.
        layout_on_disk = Layout(layout.shape, layout.dtype, info.kind)
        self._target = _Target(info.id, str(info.path), descriptor, layout_on_disk.offset, layout_on_disk.size)

    async def _flush(self) -> None:
        target, data = self._target, bytes(self._buffer)
        assert target is not None
        self._buffer.clear()
        if target.at + len(data) > target.end:
            raise InvalidRequest.of("body", "has more bytes than the array in its header")
        if target.existing is None:
            await asyncio.to_thread(_write_all, target.descriptor, data, target.at)
        elif await asyncio.to_thread(os.pread, target.descriptor, len(data), target.at) != data:
            self._store.require_free(self._id)
        target.at += len(data)

    async def finish(self) -> ArrayInfo:
        """Mark the array as complete at the end of the body; raises `InvalidRequest` if bytes are missing."""
        if self._target is None:
            raise InvalidRequest.of("body", "ends before the end of its safetensors header")
        await self._flush()
        if self._target.at != self._target.end:
            raise InvalidRequest.of("body", f"ends {self._target.end - self._target.at:,} bytes before the end of the array")
        if not self._is_same_file(self._target):
            raise ArrayConflict(f"The array {self._target.array_id!r} was deleted during the upload")
        info = self._target.existing or await self._store.ready(self._target.array_id, sent=True)
        self._done = True
        self._stack.close()
        return info

    async def abandon(self) -> None:
        """Delete the incomplete array. Do nothing after `finish`."""
        if self._done:
            return
        self._done = True
        unchanged = self._target is not None and not self.repeated and self._is_same_file(self._target)
        self._stack.close()
        if self._target is not None and unchanged:
            with contextlib.suppress(ArrayNotFound):  # already deleted
                await self._store.remove(self._target.array_id)

    def _is_same_file(self, target: _Target) -> bool:
        """Return True if the path still refers to the open file; it may have been deleted and reused for another array."""
        try:
            return os.path.samestat(os.fstat(target.descriptor), os.stat(target.path))
        except FileNotFoundError:
            return False


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
