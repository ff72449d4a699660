"""Array store of a runtime: allocation, leases, quota, eviction and deletion of arrays.

A file is created in its full size, filled by the client that allocated it, and immutable once it is ready. Pending and running tasks
hold a lease on their arrays here. Processes that map an array hold a lease on its file (see `arrays.blocks`), which the operating
system frees when they end for any reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openruntime_jupyter.arrays import array_file, blocks
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.engines.protocol import StoredArray
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest, StorageUnavailable, gigabytes
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.spool import DISK_LEFT, DISK_LEFT_BYTES, MEMORY_LEFT, SUFFIX, BlockCache, Spool, SpoolFolder
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage, ArrayReference
from openruntime_jupyter.schemas.base import iso, timestamp

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
"""Time for which a fetched result is not evicted, so that the client can map it."""
SPACE_CACHE_SECONDS = 0.5
"""Maximum age of the free space passed to a task; the actual allocation checks it again."""
SCARCE = 0.25
"""Part of the quota below which a task gets the present free space, because another task may just have taken the rest."""
COPY_SECONDS = 300.0
"""Time from the last use of a copy until it may be evicted. The task that it was sent for starts after its other arrays are sent."""
WRITER_SECONDS = 30.0
"""Maximum time between allocating and filling an array for a writer without a lock."""
RETRY_SECONDS = (0.01, 0.05, 0.25, 1.0)
"""Delays between attempts to remove a deleted array that is still in use; a worker releases it right after its result."""
RETRY_KEPT_SECONDS = 300.0
"""Time for which the uploaded inputs of a failed task are kept, so that it can be submitted again, unless their space is needed."""
BLOCKS_PART = 8
"""Free blocks take at most the total memory divided by this number, unless configured otherwise."""
SWEEP_SECONDS = 2.0
ROUNDS_OF_TASKS = 300
"""Every n-th sweep also deletes the results of unknown tasks."""


class ArrayStore:
    """Store of a runtime's arrays. Its methods run on the runtime's loop, except `open` and `close`, which block."""

    def __init__(self, settings: Settings, runtime_id: str, machine: Machine) -> None:
        total = machine.memory().total
        self.quota = settings.array_bytes or total // 2
        """Maximum bytes of all arrays."""
        self._settings = settings
        self._machine = machine
        self._spool = Spool(settings, runtime_id)
        most = min(self.quota, total // BLOCKS_PART if settings.warm_bytes < 0 else settings.warm_bytes)
        self._blocks = BlockCache(self._spool, machine, most)
        self._records: dict[str, ArrayRecord] = {}
        self._writers: Counter[str] = Counter()
        self._space_read_at = float("-inf")
        self._left = 0
        self._rooms: list[tuple[str, int, int]] = []
        self._dropping: set[asyncio.Task[None]] = set()
        self.on_deleted: Callable[[str], None] = lambda array_id: None
        """Called with the id of an array that was deleted."""

    def open(self) -> None:
        """Create the folders and take over the arrays of dead runtimes of this user. Blocks."""
        for path in self._spool.open():
            if (record := load_record(path)) is not None:
                self._records[record.id] = record

    async def stop(self) -> None:
        """Cancel background work, then `close`."""
        for task in tuple(self._dropping):
            task.cancel()
        await asyncio.gather(*self._dropping, return_exceptions=True)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Remove the files that no task references, and release the folders. Blocks; never raises.

        Files for the next runtime stay: arrays leased by pending tasks, and results that are not fetched yet or are on disk.
        """
        kept = [record for record in self._records.values() if self._kept_for_next(record)]
        for record in kept:
            with contextlib.suppress(OSError):
                os.utime(record.path, times=(time.time(), time.time() - record.idle))  # the next runtime derives its age from it
        self._records.clear()
        self._blocks.close()
        self._spool.close(frozenset(record.path for record in kept))

    def _kept_for_next(self, record: ArrayRecord) -> bool:
        if self._settings.embedded or not record.ready or record.expired(self._settings.array_seconds):
            return False
        if record.leases:
            return True
        place = self._spool.place_of(record.folder)
        in_memory = place is not None and place.in_memory
        return record.task_id is not None and not record.delete_pending and not (in_memory and record.fetched)

    @property
    def problem(self) -> str | None:
        """Reason why arrays cannot be stored; None if they can."""
        return self._spool.problem

    # Clients

    async def allocate(self, layout: Layout, owner: str | None = None, name: str | None = None, *, copy: bool = False) -> ArrayInfo:
        """Create the file of a new array in its full size; the client fills `path`, then calls `ready`.

        A `copy` of another runtime's array is deleted if its space is needed. Raises `InvalidRequest` if the size exceeds the quota,
        `ArrayConflict` for an existing name, and `StorageUnavailable` with the sizes if the array does not fit now.
        """
        array_id = check_name(name) if name is not None else make_id("arr")
        if (known := self._found(array_id)) is not None:
            raise name_conflict(known)
        if layout.size > self.quota:
            raise InvalidRequest.of(
                "array", f"{gigabytes(layout.size)} exceed the quota of {gigabytes(self.quota)} for all arrays (array_bytes)"
            )
        await self._require(layout.size)
        if (known := self._records.get(array_id)) is not None:
            raise name_conflict(known)
        record = self._records[array_id] = ArrayRecord(array_id, layout, Path(), owner, creating=True, copy=copy)
        try:
            await self._make(record)
        except BaseException:
            self._records.pop(array_id, None)
            raise
        finally:
            record.creating = False
        if record.delete_pending or array_id not in self._records:  # deleted, or the store closed, during creation
            await self._drop(record)
            raise self._unknown(array_id)
        record.allocated = True
        return self._info(record)

    def complete(self, name: str) -> ArrayInfo | None:
        """Return the complete array of that name, or None."""
        record = self._found(name)
        return None if record is None or not record.ready or record.delete_pending else self._info(record)

    def require_free(self, name: str) -> None:
        """Raise `ArrayConflict` or `InvalidRequest` if clients may not send an array of that name."""
        record = self._found(name)
        if record is None:
            check_name(name)
        elif record.ready or name in self._writers or not record.allocated:
            raise name_conflict(record)

    async def place_for(self, name: str, layout: Layout, owner: str | None) -> ArrayInfo:
        """Return the array to fill for an upload under a name, either the one already allocated or a new one.

        Raises the errors of `allocate`, and `InvalidRequest` if the allocated array has another shape or dtype.
        """
        self.require_free(name)
        record = self._records.get(name)
        if record is None:
            return await self.allocate(layout, owner, name)
        if (record.layout.shape, record.layout.dtype) != (layout.shape, layout.dtype):
            allocated = f"{record.layout.dtype}{list(record.layout.shape)}"
            raise InvalidRequest.of("body", f"it is {layout.dtype}{list(layout.shape)}, but {allocated} was allocated")
        return self._info(record)

    async def ready(self, array_id: str, *, sent: bool = False) -> ArrayInfo:
        """Mark a filled array as ready, which makes it usable and immutable. Raises `ArrayNotFound`, `ArrayConflict`, `InvalidRequest`.

        `sent` is set by an upload through this process.
        """
        record = self._record(array_id)
        if record.ready or record.verifying:
            raise ArrayConflict(f"The array {array_id} is already complete")
        if not record.allocated or (array_id in self._writers and not sent):
            raise ArrayConflict(f"The array {array_id} is still being sent: it is complete when the upload has ended")
        await self._finish(record)
        return self._info(record)

    async def _finish(self, record: ArrayRecord) -> None:
        """Verify and rename the file. Raise `ArrayNotFound` if it does not match the layout, and `InvalidRequest` for invalid elements."""

        def finish() -> None:
            unfinished = record.folder / f"{record.id}{UNFINISHED}"
            if read_layout(unfinished, record.id) != record.layout:
                raise ArrayNotFound(f"The array {record.id} is damaged: its header was changed")
            if record.allocated and record.layout.dtype == "bool":
                array_file.check_bool(unfinished, record.layout)
            unfinished.chmod(0o400)
            unfinished.rename(record.folder / f"{record.id}{SUFFIX}")

        if record.deleting:  # it is being deleted
            raise self._unknown(record.id)
        record.verifying = True
        try:
            await asyncio.to_thread(finish)
            record.ready = True
        except OSError as problem:
            record.delete_pending = True
            raise ArrayNotFound(f"The array {record.id} is gone ({problem.strerror}): send it again") from None
        except (ArrayNotFound, InvalidRequest):
            record.delete_pending = True
            raise
        finally:
            record.verifying = False
            record.touch()
            if record.delete_pending:
                await self._drop(record)
        if record.delete_pending:  # deleted during verification
            raise self._unknown(record.id)

    async def remove(self, array_id: str) -> None:
        """Delete the array; pending and running tasks and processes that map it keep it until they end.

        Raises `ArrayNotFound`, and `ArrayConflict` for an array of another runtime.
        """
        if self._found(array_id) is None and self._outside(array_id) is not None:
            raise ArrayConflict(f"The array {array_id} belongs to another runtime on this machine: delete it there")
        await self._drop(self._record(array_id))

    async def info(self, array_id: str) -> ArrayInfo:
        """Return the description of an array of this or another runtime of this user; raise `ArrayNotFound` if unknown."""
        record = self._found(array_id)
        if record is None or record.delete_pending:
            return self._info(await self._elsewhere(array_id))
        if record.ready:
            record.touch()
            record.fetched = True
        return self._info(record)

    async def _elsewhere(self, array_id: str) -> ArrayRecord:
        path = self._outside(array_id)
        record = await asyncio.to_thread(load_record, path) if path is not None else None
        if record is None:
            raise self._unknown(array_id)
        return record

    def exposed(self, info: ArrayInfo) -> ArrayInfo:
        """Return `info` for a client that may open the file without a lease, and never reuse that file for another array.

        The path is omitted if the array belongs to another runtime or is being deleted.
        """
        record = self._records.get(info.id)
        if record is None or record.deleting:
            return info.model_copy(update={"path": None})
        record.exposed = True
        return info

    def page(self) -> ArrayPage:
        """Return all arrays of this runtime, newest first."""
        shown = sorted((record for record in self._records.values() if not record.delete_pending), key=lambda record: -record.created)
        return ArrayPage(
            arrays=[self._info(record) for record in shown],
            total_bytes=self.used_bytes,
            warm_bytes=self._blocks.bytes,
            quota_bytes=self.quota,
            timestamp=timestamp(time.time()),
        )

    @contextlib.contextmanager
    def writing(self, array_id: str) -> Any:
        """Mark the array as being filled through this process within the context, so that it is not dropped as abandoned."""
        self._writers[array_id] += 1  # two if the array was deleted and allocated again
        try:
            yield
        finally:
            self._writers[array_id] -= 1
            self._writers += Counter()  # removes ids with a count of 0

    # Tasks

    def known(self, array_id: str) -> Layout | None:
        """Return the layout of a usable array, or None."""
        record = self._found(array_id)
        if record is not None:
            usable = record.ready and not record.deleting and (not record.delete_pending or record.reusable)
            return record.layout if usable else None
        path = self._outside(array_id)
        with contextlib.suppress(ArrayNotFound):
            return read_layout(path, array_id) if path is not None else None
        return None

    def lease(self, array_ids: Iterable[str], task_id: str) -> None:
        """Keep these arrays until `release`. Raises `InvalidRequest` with the missing ones, and then keeps none."""
        wanted = list(dict.fromkeys(array_ids))
        if not wanted:
            return
        missing = [array_id for array_id in wanted if self.known(array_id) is None]
        if missing:
            raise InvalidRequest.of(
                "parameters", f"unknown array {', '.join(missing[:5])}: it was deleted, has expired, or is not complete. Send it again."
            )
        for array_id in wanted:
            if (record := self._records.get(array_id)) is not None:
                record.leases.add(task_id)
                record.touch()

    def release(self, task_id: str, array_ids: Iterable[str], keep: bool = False) -> None:
        """Release the leases of a finished task. With `keep`, its uploads stay for a while, because it may be submitted again."""
        for array_id in array_ids:
            record = self._records.get(array_id)
            if record is not None:
                record.leases.discard(task_id)
                record.touch()
                record.kept_until = now() + RETRY_KEPT_SECONDS if keep and record.uploaded else 0.0
                if record.delete_pending and not record.leases and not record.reusable:
                    self._later(self._drop(record))

    def path_of(self, array_id: str) -> str:
        """Return the file of an array for an engine; raise `ArrayNotFound` if it is unknown."""
        record = self._records.get(array_id)
        path = record.path if record is not None and record.ready else self._outside(array_id)
        if path is None:
            raise self._unknown(array_id)
        return str(path)

    def places(self) -> list[tuple[str, int, int]]:
        """Return the folders for results, best first, each with its free bytes and its free bytes without releasing free blocks."""
        moment = time.monotonic()
        old = moment - self._space_read_at > SPACE_CACHE_SECONDS
        if old:
            self._space_read_at = moment
            self._rooms = [(str(place.folder), self._free_bytes(place), blocks.held(place.folder)) for place in self._spool.places]
        if old or self._left < SCARCE * self.quota:
            # Every task with code asks, and adding up thousands of arrays takes longer than the rest of an empty task.
            self._left = self.quota + sum(record.size for record in self._evictable(0.0)) - self.used_bytes
        left = self._left
        return [(folder, max(0, min(left, room + free)), max(0, min(left, room))) for folder, room, free in self._rooms]

    async def adopt(self, owner: str | None, stored: Iterable[StoredArray]) -> list[ArrayReference]:
        """Add the result arrays that a worker has written to the store. Return their references.

        Raises `StorageUnavailable` if they exceed the quota, and `ArrayNotFound` if a file does not match its layout. All of them are
        deleted then.
        """
        records = [
            ArrayRecord(each.id, Layout(each.shape, each.dtype, each.kind), self._spool.places[each.place].folder, owner) for each in stored
        ]
        try:
            if records:
                await self._require(sum(record.size for record in records))
            self._records.update((record.id, record) for record in records)
            for record in records:
                await self._finish(record)
            await self._files_created(records)
        except BaseException:
            for record in records:
                await self._drop(record)
            raise
        return [record.reference() for record in records]

    async def discard(self, name: str) -> None:
        """Remove the files of an attempt without a result, whose `result_name` is given."""
        await asyncio.to_thread(self._spool.discard, f"{name}.")

    async def forget(self, task_id: str) -> None:
        """Delete the results of a deleted task."""
        for record in [record for record in self._records.values() if record.task_id == task_id]:
            await self._drop(record)

    # Quota. Sizes are in bytes.

    @property
    def used_bytes(self) -> int:
        """Bytes of all array files, including those to be deleted after use and without free blocks."""
        return sum(record.size for record in self._records.values())

    def release_memory(self, wanted: int) -> bool:
        """Start releasing `wanted` bytes of memory: inputs of failed tasks, and free blocks. Return whether any will be released."""
        kept = self._kept()
        for record in kept:
            record.kept_until = 0.0
            self._later(self._drop(record))
        return self._blocks.release_memory(wanted) or bool(kept)

    def _kept(self) -> list[ArrayRecord]:
        """Return the inputs of failed tasks that nothing else uses."""
        return [record for record in self._records.values() if record.delete_pending and record.reusable and not record.leases]

    def _free_bytes(self, place: SpoolFolder) -> int:
        """Return the bytes available for a new array in a folder."""
        try:
            found = os.statvfs(place.folder)
        except OSError:
            return 0
        left = found.f_bavail * found.f_frsize
        if place.in_memory:
            memory = self._machine.memory()
            return max(0, min(left, int(memory.available - MEMORY_LEFT * memory.total)))
        return max(0, left - min(int(found.f_blocks * found.f_frsize * DISK_LEFT), DISK_LEFT_BYTES))

    async def _require(self, size: int) -> None:
        """Evict arrays until `size` more bytes fit into the quota. Register their array before the next await.

        Raises `StorageUnavailable` if they do not fit.
        """
        for pause in (0.0, QUIET_SECONDS):
            if pause and self._evictable(0.0) and self.used_bytes + size > self.quota:
                await asyncio.sleep(pause)  # recently fetched results become evictable then
            for record in self._evictable(QUIET_SECONDS):
                if self.used_bytes + size <= self.quota:
                    return
                await self._drop(record, only_unused=True)
        used = self.used_bytes
        if used + size > self.quota:
            raise StorageUnavailable(
                f"No room for an array of {gigabytes(size)}: arrays use {gigabytes(used)} of {gigabytes(self.quota)} "
                "(array_bytes). Delete unneeded arrays (GET /arrays lists them), or raise that setting.",
                retry_after=10.0,
            )

    async def _make(self, record: ArrayRecord) -> None:
        """Create the file of an array whose size is already counted; raise `StorageUnavailable` if no folder has room."""
        refusal: StorageUnavailable | None = None
        for place in self._spool.places:
            room = self._free_bytes(place)
            if record.size > room + blocks.held(place.folder):
                continue
            record.folder = place.folder
            try:
                os.close(await asyncio.to_thread(array_file.make, record.path, record.layout, room))
            except StorageUnavailable as problem:  # another process took the space
                refusal = problem
                continue
            await self._files_created([record])
            return
        if self.problem is not None:
            raise StorageUnavailable(self.problem, retry_after=60.0)
        rooms = (f"{place.root} has {gigabytes(self._free_bytes(place) + blocks.held(place.folder))}" for place in self._spool.places)
        raise refusal or StorageUnavailable(
            f"No room for an array of {gigabytes(record.size)}: {', '.join(rooms)} left for arrays. "
            "Delete unneeded arrays, or choose a larger folder with the setting spool_dir.",
            retry_after=10.0,
        )

    async def _files_created(self, records: Collection[ArrayRecord]) -> None:
        """Release free blocks that exceed the quota with the new `records`, and prepare blocks for further arrays of their sizes."""
        await self._blocks.shrink_to(self.quota - self.used_bytes)
        for record in records:
            place = self._spool.place_of(record.folder)
            if place is None or not self._blocks.accepts(place.folder, record.size) or blocks.fits(place.folder, record.size):
                continue
            fetched = [each for each in self._evictable(QUIET_SECONDS) if each.fetched and each.task_id is not None]
            fitting = [each for each in fetched if each.folder == place.folder and not each.exposed and blocks.near(each.size, record.size)]
            # Clients may fetch results again, so some are kept.
            if fitting and sum(each.size for each in fetched) > self._blocks.most:
                self._later(self._drop(min(fitting, key=lambda each: each.used), only_unused=True))
            else:
                self._blocks.prepare_next(place.folder, record.size, self.quota - self.used_bytes, self._free_bytes(place))

    async def _drop(self, record: ArrayRecord, only_unused: bool = False) -> None:
        """Delete the array's file as soon as it is unused; with `only_unused`, do nothing if it is in use."""
        # Once, and one call at a time: a second one could remove the next array of that name, or miss a file that is being created.
        if record.deleted:
            return
        kept = record.reusable and not only_unused
        if record.leases or kept or record.deleting or record.verifying or record.creating:
            record.delete_pending = record.delete_pending or not only_unused
            return
        path, reuse = record.path, not record.exposed and self._blocks.accepts(record.folder, record.size)
        record.deleting = True
        try:
            gone = await asyncio.to_thread(blocks.retire, path, reuse)
            if not gone and not record.ready:  # its writer's data is no longer needed
                await asyncio.to_thread(path.unlink, missing_ok=True)
                gone = True
        finally:
            record.deleting = False
        if gone:
            record.deleted = True
            if self._records.get(record.id) is record:
                del self._records[record.id]
                self.on_deleted(record.id)
            await self._blocks.shrink_to(self.quota - self.used_bytes)
        elif not only_unused and not record.delete_pending:
            record.delete_pending = True
            self._later(self._retry(record))

    async def _retry(self, record: ArrayRecord) -> None:
        for pause in RETRY_SECONDS:
            await asyncio.sleep(pause)
            if record.deleted:
                return
            await self._drop(record)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def _evictable(self, quiet: float) -> list[ArrayRecord]:
        """Return the evictable arrays in order of eviction: deleted ones, expired ones, then results fetched `quiet` seconds ago."""
        seconds = self._settings.array_seconds
        useless = [
            each
            for each in self._records.values()
            if each.ready
            and not each.leases
            and (
                each.delete_pending
                or each.expired(seconds)
                or (each.copy and each.idle >= COPY_SECONDS)
                or (each.task_id is not None and each.fetched and each.idle >= quiet)
            )
        ]
        return sorted(useless, key=lambda record: (not record.delete_pending, not record.expired(seconds), record.used))

    async def sweep(self, exists: Callable[[str], Awaitable[bool]] | None = None) -> None:
        """Delete expired arrays, abandoned unfinished ones, and those deleted while in use.

        If `exists(task_id)` is given, also delete the results of unknown tasks.
        """
        if (kept := self._kept()) and self._blocks.memory_is_short():
            for record in kept:
                await self._drop(record, only_unused=True)
        records = list(self._records.values())
        for record in await asyncio.to_thread(lambda: [each for each in records if each.file_missing]):
            if record.file_missing:  # it may have been deleted since
                self._forget_missing(record)
        for record in list(self._records.values()):
            if not record.ready:
                await self._drop_abandoned(record)
            elif (
                record.expired(self._settings.array_seconds)
                or record.delete_pending
                or (exists is not None and record.task_id is not None and not await exists(record.task_id))
            ):
                await self._drop(record)
        await self._blocks.release_expired()

    def _forget_missing(self, record: ArrayRecord) -> None:
        """Remove and log an array whose file was removed by another program."""
        record.deleted = True
        if self._records.get(record.id) is record:
            del self._records[record.id]
            self.on_deleted(record.id)
            log.warning("The array %s is gone: another program removed its file %s", record.id, record.path)

    async def _drop_abandoned(self, record: ArrayRecord) -> None:
        if not record.allocated or record.verifying or record.idle <= WRITER_SECONDS:
            return
        if record.id in self._writers or await asyncio.to_thread(blocks.leased, record.path):
            record.touch()  # the time limit to call `ready` starts when its lease ends
        elif not record.ready:
            await self._drop(record)

    async def run_sweeper(self, exists: Callable[[str], Awaitable[bool]]) -> None:
        """Sweep every few seconds until cancelled."""
        for rounds in itertools.count(1):
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep(exists if rounds % ROUNDS_OF_TASKS == 0 else None)
            except Exception:  # the next round must run
                log.exception("Sweeping arrays failed")

    def _outside(self, array_id: str) -> Path | None:
        """Return the file of another runtime's array, or None; invalid names are not looked up."""
        return self._spool.elsewhere(array_id) if OWN.fullmatch(array_id) or CHOSEN.fullmatch(array_id) else None

    def _found(self, array_id: str) -> ArrayRecord | None:
        """Return the record of an array, or None if it is unknown or another program removed its file."""
        record = self._records.get(array_id)
        if record is None or not record.file_missing:
            return record
        self._forget_missing(record)
        return None

    def _record(self, array_id: str) -> ArrayRecord:
        record = self._found(array_id)
        if record is None or record.delete_pending:
            raise self._unknown(array_id)
        return record

    def _unknown(self, array_id: str) -> ArrayNotFound:
        return ArrayNotFound(
            f"Unknown array {array_id[:120]!r}: it never existed, it or its file was deleted, or it was not used for "
            f"{self._settings.array_seconds:g} s"
        )

    def _info(self, record: ArrayRecord) -> ArrayInfo:
        return record.info(self._settings.array_seconds)


OWN = re.compile(r"arr_[0-9a-z]{1,40}(\.\d{1,9}\.\d{1,9})?")
"""Ids that a runtime makes, for an allocated array or for a task's result (task, attempt, index)."""
CHOSEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Names that clients may choose."""


def check_name(name: str) -> str:
    """Return `name` if clients may choose it; raise `InvalidRequest` otherwise."""
    if not CHOSEN.fullmatch(name) or name.startswith("arr_"):
        raise InvalidRequest.of("id", "a name has up to 100 letters, digits, _ and -, and must not begin with arr_")
    return name


def result_name(task_id: str, attempt: int) -> str:
    """Return the prefix of the ids of an attempt's result arrays."""
    return f"arr_{task_id.removeprefix('task_')}.{attempt}"


def task_of(array_id: str) -> str | None:
    """Return the id of the task whose result the array is, or None."""
    found = OWN.fullmatch(array_id)
    return f"task_{array_id[4:].split('.', maxsplit=1)[0]}" if found is not None and found[1] else None


def now() -> float:
    """Return the monotonic time in seconds, which all ages are based on."""
    return time.monotonic()


@dataclass(slots=True, eq=False)
class ArrayRecord:
    """State of one stored array."""

    id: str
    layout: Layout
    folder: Path
    owner: str | None = None
    copy: bool = False
    """It is a copy of another runtime's array."""
    creating: bool = False
    """Its file is being created; it cannot be deleted until that has ended."""
    allocated: bool = False
    """Its file exists and can be filled."""
    ready: bool = False
    verifying: bool = False
    """Its file is being verified; it can neither be used nor deleted until that has ended."""
    created: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    used: float = field(default_factory=lambda: now())  # noqa: PLW0108 - late lookup, because tests replace the clock
    """Time of the last use by `now`."""
    fetched: bool = False
    """A client has requested it since it was ready."""
    delete_pending: bool = False
    """It is deleted as soon as it is unused."""
    exposed: bool = False
    """Its path was returned to a client that may use the file without a lease, so the file is never reused for another array."""
    deleting: bool = False
    """Its file is being deleted, unless a lease is found."""
    deleted: bool = False
    """Its file was deleted; the name may belong to another array by now."""
    leases: set[str] = field(default_factory=set)
    """Tasks that are pending or running with it."""
    kept_until: float = 0.0
    """Time by `now` until which a failed task that used it may be submitted again."""
    size: int = field(init=False)
    """Bytes of its file; stored because the sizes of all arrays are added up for every task."""
    task_id: str | None = field(init=False)
    """The task whose result it is."""

    def __post_init__(self) -> None:
        """Set the derived fields."""
        self.size = self.layout.size
        self.task_id = task_of(self.id)

    @property
    def path(self) -> Path:
        """Path of its file."""
        return self.folder / f"{self.id}{SUFFIX if self.ready else UNFINISHED}"

    @property
    def file_missing(self) -> bool:
        """True if another program removed its file. Reads the file system."""
        return self.ready and not (self.deleting or self.verifying) and not self.path.exists()

    @property
    def uploaded(self) -> bool:
        """True for an input that a client sent without a name, which it deletes right after the submission."""
        return self.task_id is None and OWN.fullmatch(self.id) is not None

    @property
    def reusable(self) -> bool:
        """True while the upload can be the input of a failed task that is submitted again, even if it was deleted."""
        return self.kept_until > now()

    def touch(self) -> None:
        """Set the time of the last use to now."""
        self.used = now()

    @property
    def idle(self) -> float:
        """Seconds since the last use."""
        return now() - self.used

    def expires(self, seconds: float) -> float | None:
        """Return when it expires if unused, in seconds since the epoch; None for never, and while it is not ready."""
        return time.time() + seconds - self.idle if seconds and self.ready and not self.leases else None

    def expired(self, seconds: float) -> bool:
        """Return whether it has expired."""
        return bool(seconds) and not self.leases and self.idle > seconds

    def reference(self) -> ArrayReference:
        """Return the reference used in task results."""
        layout = self.layout
        return ArrayReference.model_construct(
            id=self.id, shape=list(layout.shape), dtype=layout.dtype, bytes=layout.nbytes, kind=layout.kind
        )

    def info(self, seconds: float) -> ArrayInfo:
        """Return its public description; `seconds` is the lifetime of an unused array."""
        layout = self.layout
        return ArrayInfo.model_construct(
            id=self.id,
            shape=list(layout.shape),
            dtype=layout.dtype,
            bytes=layout.nbytes,
            kind=layout.kind,
            state="ready" if self.ready else "writing",
            size=self.size,
            owner=self.owner,
            task_id=self.task_id,
            created_at=timestamp(self.created),
            expires_at=iso(self.expires(seconds)),
            leases=len(self.leases),
            path=str(self.path),
        )


def read_layout(path: Path, array_id: str) -> Layout:
    """Return the layout of an array's file; raise `ArrayNotFound` if it is missing, truncated or damaged. Blocks."""
    descriptor = array_file.open_for_reading(path, array_id)
    try:
        return array_file.read(descriptor, array_id)
    finally:
        os.close(descriptor)


def load_record(path: Path) -> ArrayRecord | None:
    """Return the record of a finished file that another runtime left; remove a damaged file and return None. Blocks.

    The file counts as exposed, because its path may have been returned to clients. Its modification time is its last use.
    """
    array_id = path.name.removesuffix(SUFFIX)
    try:
        state = path.stat()
        layout = read_layout(path, array_id)
    except ArrayNotFound:
        path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    used = now() - max(0.0, time.time() - state.st_mtime)
    return ArrayRecord(array_id, layout, path.parent, ready=True, exposed=True, created=state.st_ctime, used=used)


def name_conflict(record: ArrayRecord) -> ArrayConflict:
    """Return the error for a name that this array already has."""
    if record.delete_pending:
        return ArrayConflict(f"The array {record.id} was deleted but is still in use and keeps its name until then: use another name")
    return ArrayConflict(f"The array {record.id} already exists, and arrays are immutable: delete it first, or use another name")
