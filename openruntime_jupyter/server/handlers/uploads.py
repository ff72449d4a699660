"""An array on its way in: its header read, its room taken, its bytes written as they come, off the loop and off the heap."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openruntime_jupyter.arrays import array_file, blocks
from openruntime_jupyter.arrays.array_file import BadTensor, Layout
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest
from openruntime_jupyter.schemas.arrays import ArrayInfo

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.arrays.store import ArrayStore

PIECE = 1 << 20
"""Bytes that are gathered before they are written: the most that one upload holds in memory, beside a header."""


@dataclass(slots=True)
class _Place:
    """Where the elements go: `at` is the next byte of the file, `end` the last but one."""

    array_id: str
    path: str
    descriptor: int
    at: int
    end: int


class Upload:
    """Takes a safetensors file piece by piece. `finish` or `abandon` ends it; after an error only `abandon`."""

    def __init__(self, store: ArrayStore, array_id: str, owner: str | None) -> None:
        self._store = store
        self._id = array_id
        self._owner = owner
        self._gathered = bytearray()
        self._place: _Place | None = None
        self._stack = contextlib.ExitStack()
        self._over = False

    async def take(self, piece: bytes) -> None:
        """The next bytes; raises `InvalidRequest` and what `ArrayStore.allocate` raises."""
        self._gathered += piece
        if self._place is None:
            layout = self._header()
            if layout is None:
                return
            await self._begin(layout)
        if len(self._gathered) >= PIECE:
            await self._write()

    def _header(self) -> Layout | None:
        """What the file says it is, as soon as that has come."""
        begun = self._gathered
        try:
            if len(begun) < array_file.LENGTH:
                return None
            length = array_file.LENGTH + array_file.header_length(bytes(begun[: array_file.LENGTH]))
            if len(begun) < length:
                return None
            layout = array_file.layout_of(bytes(begun[array_file.LENGTH : length]))
        except BadTensor as problem:
            raise InvalidRequest.of("body", str(problem)) from None
        del self._gathered[:length]
        return layout

    async def _begin(self, layout: Layout) -> None:
        told = await self._store.place_for(self._id, layout, self._owner)
        if self._over:  # the client went while there was room to be found
            await self._store.remove(told.id)
            raise ArrayConflict("The upload was broken off.")
        self._stack.enter_context(self._store.writing(told.id))
        try:
            descriptor = os.open(str(told.path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as problem:
            await self._store.remove(told.id)
            raise ArrayNotFound(f"The room for the array {told.id} is gone ({problem.strerror}): take it anew.") from None
        self._stack.callback(os.close, descriptor)
        if not blocks.lease(descriptor, str(told.path)):
            raise ArrayConflict("The array was deleted while it was sent.")
        # Our own header may be longer than theirs.
        ours = Layout(layout.shape, layout.dtype, told.kind)
        self._place = _Place(told.id, str(told.path), descriptor, ours.offset, ours.size)

    async def _write(self) -> None:
        place, data = self._place, bytes(self._gathered)
        assert place is not None
        self._gathered.clear()
        if place.at + len(data) > place.end:
            raise InvalidRequest.of("body", "it goes on after the array that its header tells of")
        await asyncio.to_thread(_write_all, place.descriptor, data, place.at)
        place.at += len(data)

    async def finish(self) -> ArrayInfo:
        """The body has ended: the array is complete. Raises `InvalidRequest` where it is not."""
        if self._place is None:
            raise InvalidRequest.of("body", "it ends before its safetensors header does")
        await self._write()
        if self._place.at != self._place.end:
            raise InvalidRequest.of("body", f"it ends {self._place.end - self._place.at:,} bytes before the array does")
        if not self._still_ours(self._place):
            raise ArrayConflict(f"The array {self._place.array_id} was deleted while it was sent.")
        told = await self._store.ready(self._place.array_id, sent=True)
        self._over = True
        self._stack.close()
        return told

    async def abandon(self) -> None:
        """Nothing is to be left; nothing happens after `finish`."""
        if self._over:
            return
        self._over = True
        ours = self._place is not None and self._still_ours(self._place)
        self._stack.close()
        if self._place is not None and ours:
            with contextlib.suppress(ArrayNotFound):  # somebody else was faster
                await self._store.remove(self._place.array_id)

    def _still_ours(self, place: _Place) -> bool:
        """Whether the name means what we write: it may have been deleted meanwhile, and be somebody else's by now."""
        try:
            return os.path.samestat(os.fstat(place.descriptor), os.stat(place.path))
        except FileNotFoundError:
            return False


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
