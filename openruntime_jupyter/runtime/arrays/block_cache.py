"""Cache of free file blocks: its size and lifetime, preparation of blocks in advance, and release when memory is short."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.runtime.arrays.spool import MEMORY_LEFT, Spool, SpoolFolder
from openruntime_jupyter.runtime.system_probe import Machine

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""Lifetime of an unused free block."""
SHORT = MEMORY_LEFT + 0.05
"""Free blocks in memory are released if less than this fraction of the total memory is available."""


class BlockCache:
    """Cache of up to `most` bytes of free blocks. Its methods run on the runtime's loop without blocking it, except `close`."""

    def __init__(self, spool: Spool, machine: Machine, most: int) -> None:
        self.most = most
        self._spool = spool
        self._machine = machine
        self._given_up: asyncio.Task[None] | None = None
        self._coming: set[asyncio.Task[Any]] = set()
        self._preparing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Stop preparing blocks; blocks until the current preparation has ended."""
        self._closed = True
        with self._preparing:
            pass

    @property
    def bytes(self) -> int:
        """Bytes of all free blocks."""
        return sum(self.bytes_in(place.folder) for place in self._spool.places)

    def bytes_in(self, folder: Path) -> int:
        """Return the bytes of the free blocks in one folder."""
        return sum(block.size for block in blocks.free(folder))

    def keeps(self, folder: Path, size: int) -> bool:
        """Return whether an unused file of that size is kept as a free block."""
        return not self._closed and blocks.SMALLEST <= size <= self.most and (place := self._place(folder)) is not None and place.reusable

    async def keep_within(self, most: int) -> None:
        """Release the oldest blocks until all take at most `most` bytes and at most the cache's limit."""
        for place in self._spool.places:
            await self._give_back(place.folder, self.bytes - max(0, min(most, self.most)))

    async def tidy(self) -> None:
        """Release expired blocks, and all blocks in memory if memory is short."""
        if not self.bytes:
            return
        now = time.time()
        memory = self._machine.memory()
        for place in self._spool.places:
            if place.in_memory and memory.available < SHORT * memory.total:
                await self._give_back(place.folder, self.bytes_in(place.folder))
            # Blocks freed in the future expire as well: the clock was set back since.
            old = sum(block.size for block in blocks.free(place.folder) if abs(now - block.since) > IDLE_SECONDS)
            await self._give_back(place.folder, old)

    def give_up(self, wanted: int) -> bool:
        """Start releasing memory for a task that needs it. Return whether any will be released."""
        if self._given_up is not None and not self._given_up.done():
            return True
        folders = [place.folder for place in self._spool.places if place.in_memory and blocks.free(place.folder)]
        if not folders:
            return False

        async def give() -> None:
            left = wanted
            for folder in folders:
                left -= await self._give_back(folder, left)

        self._given_up = self._start(give())
        return True

    def expect(self, folder: Path, size: int, room: int) -> None:
        """Prepare another block of that size in memory in the background, if `room` and free memory suffice."""
        place = self._place(folder)
        if self._coming or self._closed or place is None or not place.in_memory:  # disks are not filled with zeros
            return
        left = place.room(self._machine) - int((SHORT - MEMORY_LEFT) * self._machine.total)
        if self.bytes + size <= min(room, self.most) and 2 * size <= left:
            self._start(asyncio.to_thread(self._prepare, folder, size))

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
        return task

    def _prepare(self, folder: Path, size: int) -> None:
        with self._preparing:
            if not self._closed and blocks.prepare(folder, size, lambda: self._closed):
                log.debug("Prepared a file of %s for the next array", gigabytes(size))

    async def _give_back(self, folder: Path, wanted: int) -> int:
        return await asyncio.to_thread(blocks.give_back, folder, wanted) if wanted > 0 else 0

    def _place(self, folder: Path) -> SpoolFolder | None:
        return next((place for place in self._spool.places if place.folder == folder), None)
