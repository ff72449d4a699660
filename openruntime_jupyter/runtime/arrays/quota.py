"""Who may have room for arrays: what goes to make some, when, and what becomes of its file."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from openruntime_jupyter.arrays import array_file, blocks
from openruntime_jupyter.errors import StorageUnavailable, gigabytes
from openruntime_jupyter.runtime.arrays.block_cache import WarmBlocks
from openruntime_jupyter.runtime.arrays.rows import QUIET_SECONDS, Record, evictable, near_and_fetched, no_room
from openruntime_jupyter.runtime.arrays.spool import Spool
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.system_probe import Machine

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How old the knowledge of free space may be that a task is given: whether there is room is seen when it is taken."""
WRITER_SECONDS = 30.0
"""How long a writer that holds no lock may take between asking for room and filling it."""
RETRY_SECONDS = (0.01, 0.05, 0.25, 1.0)
"""When to look again whether whoever had a deleted array has let go of it: a worker does right after it has answered."""
WARM_PART = 8
"""The part of the machine's memory that warm blocks may take, unless told otherwise: an eighth."""


class ArrayQuota:
    """The room that `records` share. Called on the runtime's loop. Sizes are in bytes."""

    def __init__(self, settings: Settings, spool: Spool, machine: Machine, records: dict[str, Record]) -> None:
        total = machine.memory().total
        self.quota = settings.array_bytes or total // 2
        self.warm = WarmBlocks(spool, machine, min(self.quota, total // WARM_PART if settings.warm_bytes < 0 else settings.warm_bytes))
        self._seconds = settings.array_seconds
        self._spool = spool
        self._machine = machine
        self._records = records
        self._looked = float("-inf")
        self._rooms: list[tuple[str, int, int]] = []
        self._all_rooms: list[tuple[str, int, int]] = []
        """What `places` says while there are no arrays."""
        self._dropping: set[asyncio.Task[None]] = set()

    @property
    def used(self) -> int:
        """What every file takes, those included that go as soon as nobody uses them, and without free blocks."""
        return sum(record.size for record in self._records.values())

    def places(self) -> list[tuple[str, int, int]]:
        """Folders for results, the best first: the bytes that may be written there now, and those without giving back free blocks."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._rooms = [(str(place.folder), place.room(self._machine), blocks.held(place.folder)) for place in self._spool.places]
            self._all_rooms = self._within(self.quota)
        if not self._records:
            return self._all_rooms
        return self._within(self.quota + sum(record.size for record in self._evictable(0.0)) - self.used)

    def _within(self, left: int) -> list[tuple[str, int, int]]:
        return [(folder, max(0, min(left, room + free)), max(0, min(left, room))) for folder, room, free in self._rooms]

    async def require(self, size: int) -> None:
        """See that `size` more are within the quota; raises `StorageUnavailable`. Count them before the next await."""
        for pause in (0.0, QUIET_SECONDS):
            if pause and self._evictable(0.0) and self.used + size > self.quota:
                await asyncio.sleep(pause)  # what was fetched a moment ago may go then
            for record in self._evictable(QUIET_SECONDS):
                if self.used + size <= self.quota:
                    return
                await self.drop(record, only_unused=True)
        used = self.used
        if used + size > self.quota:
            raise StorageUnavailable(
                f"There is no room for an array of {gigabytes(size)}: arrays have {gigabytes(used)} of {gigabytes(self.quota)} "
                "(array_bytes). Delete those that are no longer needed (GET /arrays lists them), or raise that setting.",
                retry_after=10.0,
            )

    async def make(self, record: Record) -> None:
        """Make its file, whose size is counted already; raises `StorageUnavailable`."""
        refusal: StorageUnavailable | None = None
        for place in self._spool.places:
            room = place.room(self._machine)
            if record.size > room + blocks.held(place.folder):
                continue
            record.folder = place.folder
            try:
                os.close(await asyncio.to_thread(array_file.make, record.path, record.layout, room))
            except StorageUnavailable as problem:  # somebody else took the room meanwhile
                refusal = problem
                continue
            await self.taken([record])
            return
        rooms = {place.root: place.room(self._machine) + blocks.held(place.folder) for place in self._spool.places}
        raise refusal or no_room(record.size, self._spool.problem, rooms)

    async def taken(self, records: Collection[Record]) -> None:
        """These have their files: free blocks give way where all is too much, and the next ones of such sizes are made ready."""
        await self.warm.keep_within(self.quota - self.used)
        for record in records:
            if not self.warm.keeps(record.folder, record.size) or blocks.fits(record.folder, record.size):
                continue
            fetched = self._evictable(QUIET_SECONDS)
            if (old := near_and_fetched(fetched, record, self.warm.most)) is not None:
                self.drop_soon(old, only_unused=True)
            else:
                self.warm.expect(record.folder, record.size, self.quota - self.used)

    async def drop(self, record: Record, only_unused: bool = False) -> None:
        """Let go of its file as soon as nobody uses it; with `only_unused`, or leave everything as it is."""
        # Once, and one at a time: by its name another one might meet the next array, or miss what is just being made or finished.
        if record.gone:
            return
        if record.leases or record.leaving or record.finishing or record.making:
            record.doomed = record.doomed or not only_unused
            return
        path, reuse = record.path, not record.exposed and self.warm.keeps(record.folder, record.size)
        record.leaving = True
        try:
            gone = await asyncio.to_thread(blocks.retire, path, reuse)
            if not gone and not record.ready:  # whoever is writing into it writes for nobody
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

    async def _retry(self, record: Record) -> None:
        for pause in RETRY_SECONDS:
            await asyncio.sleep(pause)
            if record.gone:
                return
            await self.drop(record)

    def drop_soon(self, record: Record, only_unused: bool = False) -> None:
        """`drop`, for which nobody waits."""
        self._later(self.drop(record, only_unused))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def stop(self) -> None:
        """End what is done in the background: what is left of it, closing the folders does."""
        for task in tuple(self._dropping):
            task.cancel()
        await asyncio.gather(*self._dropping, return_exceptions=True)

    async def sweep(self, writers: Collection[str], exists: Callable[[str], Awaitable[bool]] | None = None) -> None:
        """Drop what is too old, what was abandoned half-written, and what was deleted while it was in use.

        `writers` are the ids of those that are being filled through this process. Where `exists(task_id)` is given, also the results
        of tasks that are no longer known.
        """
        records = list(self._records.values())
        for missing in await asyncio.to_thread(lambda: [each for each in records if each.lost]):
            if missing.lost:  # it may just have been let go of
                self.forget(missing)
        for record in list(self._records.values()):
            if not record.ready:
                await self._drop_abandoned(record, writers)
            elif record.expired(self._seconds) or record.doomed or (exists is not None and not await self._task_exists(record, exists)):
                await self.drop(record)
        await self.warm.tidy()

    def forget(self, record: Record) -> None:
        """Its file is gone, though nobody has let go of it here: say so, and count it no longer."""
        record.gone = True
        if self._records.get(record.id) is record:
            del self._records[record.id]
            log.warning("The array %s is gone: somebody has removed its file %s", record.id, record.path)

    async def _drop_abandoned(self, record: Record, writers: Collection[str]) -> None:
        if not record.made or record.finishing or record.idle <= WRITER_SECONDS:
            return
        if record.id in writers or await asyncio.to_thread(blocks.leased, record.path):
            record.touch()  # from the end of its lease on it has as long to say that it is ready
        elif not record.ready:
            await self.drop(record)

    async def _task_exists(self, record: Record, exists: Callable[[str], Awaitable[bool]]) -> bool:
        return record.task_id is None or await exists(record.task_id)

    def _evictable(self, quiet: float) -> list[Record]:
        return evictable(self._records.values(), self._seconds, quiet)
