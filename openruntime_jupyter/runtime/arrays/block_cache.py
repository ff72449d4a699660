"""The free blocks of a runtime: how many are kept, for how long, made ready ahead of need, and given up when memory is short."""

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
from openruntime_jupyter.runtime.arrays.spool import MEMORY_LEFT, Place, Spool
from openruntime_jupyter.runtime.system_probe import Machine

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""How long a free block waits to be used."""
SHORT = MEMORY_LEFT + 0.05
"""When less than this part of the machine's memory is available, free blocks in memory are given up."""


class WarmBlocks:
    """Called on the runtime's loop, which it never holds up, except `close`, which blocks. `most` is in bytes."""

    def __init__(self, spool: Spool, machine: Machine, most: int) -> None:
        self.most = most
        self._spool = spool
        self._machine = machine
        self._given_up: asyncio.Task[None] | None = None
        self._coming: set[asyncio.Task[Any]] = set()
        self._preparing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Make no more; blocks until the one that is just being made has ended."""
        self._closed = True
        with self._preparing:
            pass

    @property
    def bytes(self) -> int:
        """What free blocks take now."""
        return sum(self.bytes_in(place.folder) for place in self._spool.places)

    def bytes_in(self, folder: Path) -> int:
        """What those in one folder take."""
        return sum(block.size for block in blocks.free(folder))

    def keeps(self, folder: Path, size: int) -> bool:
        """Whether a file of that size becomes a free block once nobody needs it."""
        return not self._closed and blocks.SMALLEST <= size <= self.most and (place := self._place(folder)) is not None and place.reusable

    async def keep_within(self, most: int) -> None:
        """Give back the oldest until all take no more than `most` bytes, nor more than is kept at all."""
        for place in self._spool.places:
            await self._give_back(place.folder, self.bytes - max(0, min(most, self.most)))

    async def tidy(self) -> None:
        """Give back what has waited too long, and all that is in memory where that has become short."""
        if not self.bytes:
            return
        now = time.time()
        memory = self._machine.memory()
        for place in self._spool.places:
            if place.in_memory and memory.available < SHORT * memory.total:
                await self._give_back(place.folder, self.bytes_in(place.folder))
            # What was freed at a time to come waits no longer for it: the clock was set back since.
            old = sum(block.size for block in blocks.free(place.folder) if abs(now - block.since) > IDLE_SECONDS)
            await self._give_back(place.folder, old)

    def give_up(self, wanted: int) -> bool:
        """Begin to give memory back, for a task that needs it; whether there is any to come."""
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
        """Have another block of that size made ready in memory, where there is `room` and to spare for it; nobody waits for it."""
        place = self._place(folder)
        if self._coming or self._closed or place is None or not place.in_memory:  # nobody's disk is to be filled with zeros
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
                log.debug("A file of %s is ready for the next array", gigabytes(size))

    async def _give_back(self, folder: Path, wanted: int) -> int:
        return await asyncio.to_thread(blocks.give_back, folder, wanted) if wanted > 0 else 0

    def _place(self, folder: Path) -> Place | None:
        return next((place for place in self._spool.places if place.folder == folder), None)
