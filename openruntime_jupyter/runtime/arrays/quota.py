"""Quota of stored arrays: allocation, eviction and deletion of their files."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from openruntime_jupyter.arrays import array_file, blocks
from openruntime_jupyter.errors import StorageUnavailable, gigabytes
from openruntime_jupyter.runtime.arrays.block_cache import BlockCache
from openruntime_jupyter.runtime.arrays.rows import QUIET_SECONDS, ArrayRecord, evictable, near_and_fetched, no_space
from openruntime_jupyter.runtime.arrays.spool import Spool
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.system_probe import Machine

log = logging.getLogger(__name__)

SPACE_CACHE_SECONDS = 0.5
"""Maximum age of the free space passed to a task; the actual allocation checks it again."""
WRITER_SECONDS = 30.0
"""Maximum time between allocating and filling an array for a writer without a lock."""
RETRY_SECONDS = (0.01, 0.05, 0.25, 1.0)
"""Delays between attempts to remove a deleted array that is still in use; a worker releases it right after its result."""
WARM_PART = 8
"""Free blocks take at most the total memory divided by this number, unless configured otherwise."""


class ArrayQuota:
    """Quota shared by `records`. Its methods run on the runtime's loop. Sizes are in bytes."""

    def __init__(self, settings: Settings, spool: Spool, machine: Machine, records: dict[str, ArrayRecord]) -> None:
        total = machine.memory().total
        self.quota = settings.array_bytes or total // 2
        self.warm = BlockCache(spool, machine, min(self.quota, total // WARM_PART if settings.warm_bytes < 0 else settings.warm_bytes))
        self._seconds = settings.array_seconds
        self._spool = spool
        self._machine = machine
        self._records = records
        self._space_read_at = float("-inf")
        self._rooms: list[tuple[str, int, int]] = []
        self._all_rooms: list[tuple[str, int, int]] = []
        """Result of `places` while no arrays exist."""
        self._dropping: set[asyncio.Task[None]] = set()

    @property
    def used(self) -> int:
        """Bytes of all files, including those to be deleted after use and without free blocks."""
        return sum(record.size for record in self._records.values())

    def places(self) -> list[tuple[str, int, int]]:
        """Return the folders for results, best first, each with its free bytes and its free bytes without releasing free blocks."""
        now = time.monotonic()
        if now - self._space_read_at > SPACE_CACHE_SECONDS:
            self._space_read_at = now
            self._rooms = [(str(place.folder), place.room(self._machine), blocks.held(place.folder)) for place in self._spool.places]
            self._all_rooms = self._within(self.quota)
        if not self._records:
            return self._all_rooms
        return self._within(self.quota + sum(record.size for record in self._evictable(0.0)) - self.used)

    def _within(self, left: int) -> list[tuple[str, int, int]]:
        return [(folder, max(0, min(left, room + free)), max(0, min(left, room))) for folder, room, free in self._rooms]

    async def require(self, size: int) -> None:
        """Evict arrays until `size` more bytes fit into the quota. Register their array before the next await.

        Raises `StorageUnavailable` if they do not fit.
        """
        for pause in (0.0, QUIET_SECONDS):
            if pause and self._evictable(0.0) and self.used + size > self.quota:
                await asyncio.sleep(pause)  # recently fetched results become evictable then
            for record in self._evictable(QUIET_SECONDS):
                if self.used + size <= self.quota:
                    return
                await self.drop(record, only_unused=True)
        used = self.used
        if used + size > self.quota:
            raise StorageUnavailable(
                f"No room for an array of {gigabytes(size)}: arrays use {gigabytes(used)} of {gigabytes(self.quota)} "
                "(array_bytes). Delete unneeded arrays (GET /arrays lists them), or raise that setting.",
                retry_after=10.0,
            )

    async def make(self, record: ArrayRecord) -> None:
        """Create the file of an array whose size is already counted; raise `StorageUnavailable` if no folder has room."""
        refusal: StorageUnavailable | None = None
        for place in self._spool.places:
            room = place.room(self._machine)
            if record.size > room + blocks.held(place.folder):
                continue
            record.folder = place.folder
            try:
                os.close(await asyncio.to_thread(array_file.make, record.path, record.layout, room))
            except StorageUnavailable as problem:  # another process took the space
                refusal = problem
                continue
            await self.files_created([record])
            return
        rooms = {place.root: place.room(self._machine) + blocks.held(place.folder) for place in self._spool.places}
        raise refusal or no_space(record.size, self._spool.problem, rooms)

    async def files_created(self, records: Collection[ArrayRecord]) -> None:
        """Release free blocks that exceed the quota with the new `records`, and prepare blocks for further arrays of their sizes."""
        await self.warm.keep_within(self.quota - self.used)
        for record in records:
            if not self.warm.keeps(record.folder, record.size) or blocks.fits(record.folder, record.size):
                continue
            fetched = self._evictable(QUIET_SECONDS)
            if (old := near_and_fetched(fetched, record, self.warm.most)) is not None:
                self.drop_soon(old, only_unused=True)
            else:
                self.warm.expect(record.folder, record.size, self.quota - self.used)

    async def drop(self, record: ArrayRecord, only_unused: bool = False) -> None:
        """Delete the array's file as soon as it is unused; with `only_unused`, do nothing if it is in use."""
        # Once, and one call at a time: a second one could remove the next array of that name, or miss a file that is being created.
        if record.gone:
            return
        if record.leases or record.leaving or record.finishing or record.making:
            record.doomed = record.doomed or not only_unused
            return
        path, reuse = record.path, not record.exposed and self.warm.keeps(record.folder, record.size)
        record.leaving = True
        try:
            gone = await asyncio.to_thread(blocks.retire, path, reuse)
            if not gone and not record.ready:  # its writer's data is no longer needed
                await asyncio.to_thread(path.unlink, missing_ok=True)
                gone = True
        finally:
            record.leaving = False
        if gone:
            record.gone = True
            if self._records.get(record.id) is record:
                del self._records[record.id]
            await self.warm.keep_within(self.quota - self.used)
        elif not only_unused and not record.doomed:
            record.doomed = True
            self._later(self._retry(record))

    async def _retry(self, record: ArrayRecord) -> None:
        for pause in RETRY_SECONDS:
            await asyncio.sleep(pause)
            if record.gone:
                return
            await self.drop(record)

    def drop_soon(self, record: ArrayRecord, only_unused: bool = False) -> None:
        """Run `drop` in the background."""
        self._later(self.drop(record, only_unused))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def stop(self) -> None:
        """Cancel the background deletions; closing the folders removes the remaining files."""
        for task in tuple(self._dropping):
            task.cancel()
        await asyncio.gather(*self._dropping, return_exceptions=True)

    async def sweep(self, writers: Collection[str], exists: Callable[[str], Awaitable[bool]] | None = None) -> None:
        """Drop expired arrays, abandoned unfinished ones, and those deleted while in use.

        `writers` are the ids of the arrays being filled through this process. If `exists(task_id)` is given, also drop the results of
        unknown tasks.
        """
        records = list(self._records.values())
        for missing in await asyncio.to_thread(lambda: [each for each in records if each.lost]):
            if missing.lost:  # it may have been deleted since
                self.forget(missing)
        for record in list(self._records.values()):
            if not record.ready:
                await self._drop_abandoned(record, writers)
            elif record.expired(self._seconds) or record.doomed or (exists is not None and not await self._task_exists(record, exists)):
                await self.drop(record)
        await self.warm.tidy()

    def forget(self, record: ArrayRecord) -> None:
        """Remove and log an array whose file was removed by another program."""
        record.gone = True
        if self._records.get(record.id) is record:
            del self._records[record.id]
            log.warning("The array %s is gone: another program removed its file %s", record.id, record.path)

    async def _drop_abandoned(self, record: ArrayRecord, writers: Collection[str]) -> None:
        if not record.made or record.finishing or record.idle <= WRITER_SECONDS:
            return
        if record.id in writers or await asyncio.to_thread(blocks.leased, record.path):
            record.touch()  # the time limit to call `ready` starts when its lease ends
        elif not record.ready:
            await self.drop(record)

    async def _task_exists(self, record: ArrayRecord, exists: Callable[[str], Awaitable[bool]]) -> bool:
        return record.task_id is None or await exists(record.task_id)

    def _evictable(self, quiet: float) -> list[ArrayRecord]:
        return evictable(self._records.values(), self._seconds, quiet)
