"""Array store of a runtime: allocation, leases and deletion of arrays.

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
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from openruntime_jupyter.arrays.array_file import Layout
from openruntime_jupyter.arrays.blocks import UNFINISHED
from openruntime_jupyter.engines.protocol import StoredArray
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest, gigabytes
from openruntime_jupyter.runtime.arrays.quota import ArrayQuota
from openruntime_jupyter.runtime.arrays.rows import (
    CHOSEN,
    OWN,
    ArrayRecord,
    check_name,
    load_record,
    name_conflict,
    read_layout,
    result_name,
)
from openruntime_jupyter.runtime.arrays.spool import SUFFIX, Spool
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.system_probe import Machine
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage, ArrayReference
from openruntime_jupyter.schemas.base import timestamp

log = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0
ROUNDS_OF_TASKS = 300
"""Every n-th sweep also deletes the results of unknown tasks."""


class ArrayStore:
    """Store of a runtime's arrays. Its methods run on the runtime's loop, except `open` and `close`, which block."""

    def __init__(self, settings: Settings, runtime_id: str, machine: Machine) -> None:
        self._settings = settings
        self._spool = Spool(settings, runtime_id)
        self._records: dict[str, ArrayRecord] = {}
        self._room = ArrayQuota(settings, self._spool, machine, self._records)
        self._writers: Counter[str] = Counter()

    def open(self) -> None:
        """Create the folders and take over the arrays of dead runtimes of this user. Blocks."""
        for path in self._spool.open():
            if (record := load_record(path)) is not None:
                self._records[record.id] = record

    async def stop(self) -> None:
        """Cancel background work, then `close`."""
        await self._room.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Remove the files that no task references, and release the folders. Blocks; never raises.

        Files for the next runtime stay: arrays leased by pending tasks, and results that are not fetched yet or are on disk.
        """
        kept = [record for record in self._records.values() if self._outlives_us(record)]
        for record in kept:
            with contextlib.suppress(OSError):
                os.utime(record.path, times=(time.time(), time.time() - record.idle))  # the next runtime derives its age from it
        self._records.clear()
        self._room.warm.close()
        self._spool.close(frozenset(record.path for record in kept))

    def _outlives_us(self, record: ArrayRecord) -> bool:
        if self._settings.embedded or not record.ready or record.expired(self._settings.array_seconds):
            return False
        if record.leases:
            return True
        in_memory = any(place.in_memory for place in self._spool.places if place.folder == record.folder)
        return record.task_id is not None and not record.doomed and not (in_memory and record.fetched)

    @property
    def problem(self) -> str | None:
        """Reason why arrays cannot be stored; None if they can."""
        return self._spool.problem

    # Clients

    async def allocate(self, layout: Layout, owner: str | None = None, name: str | None = None) -> ArrayInfo:
        """Create the file of a new array in its full size; the client fills `path`, then calls `ready`.

        Raises `InvalidRequest` if the size exceeds the quota, `ArrayConflict` for an existing name, and `StorageUnavailable` with the
        sizes if the array does not fit now.
        """
        array_id = check_name(name) if name is not None else make_id("arr")
        if (known := self._found(array_id)) is not None:
            raise name_conflict(known)
        if layout.size > self.quota:
            raise InvalidRequest.of(
                "array", f"{gigabytes(layout.size)} exceed the quota of {gigabytes(self.quota)} for all arrays (array_bytes)"
            )
        await self._room.require(layout.size)
        if (known := self._records.get(array_id)) is not None:
            raise name_conflict(known)
        record = self._records[array_id] = ArrayRecord(array_id, layout, Path(), owner, making=True)
        try:
            await self._room.make(record)
        except BaseException:
            self._records.pop(array_id, None)
            raise
        finally:
            record.making = False
        if record.doomed or array_id not in self._records:  # deleted, or the store closed, during creation
            await self._room.drop(record)
            raise self._unknown(array_id)
        record.made = True
        return self._info(record)

    def require_free(self, name: str) -> None:
        """Raise `ArrayConflict` or `InvalidRequest` if clients may not send an array of that name."""
        record = self._found(name)
        if record is None:
            check_name(name)
        elif record.ready or name in self._writers or not record.made:
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
        """Mark a filled array as ready, which makes it usable and immutable. Raises `ArrayNotFound`, `ArrayConflict`.

        `sent` is set by an upload through this process.
        """
        record = self._record(array_id)
        if record.ready or record.finishing:
            raise ArrayConflict(f"The array {array_id} is already complete")
        if not record.made or (array_id in self._writers and not sent):
            raise ArrayConflict(f"The array {array_id} is still being sent: it is complete when the upload has ended")
        await self._finish(record)
        return self._info(record)

    async def _finish(self, record: ArrayRecord) -> None:
        """Verify and rename the file; raise `ArrayNotFound` if it does not match the allocated layout."""

        def finish() -> None:
            unfinished = record.folder / f"{record.id}{UNFINISHED}"
            if read_layout(unfinished, record.id) != record.layout:
                raise ArrayNotFound(f"The array {record.id} is damaged: its header was changed")
            unfinished.chmod(0o400)
            unfinished.rename(record.folder / f"{record.id}{SUFFIX}")

        if record.leaving:  # it is being deleted
            raise self._unknown(record.id)
        record.finishing = True
        try:
            await asyncio.to_thread(finish)
            record.ready = True
        except OSError as problem:
            record.doomed = True
            raise ArrayNotFound(f"The array {record.id} is gone ({problem.strerror}): send it again") from None
        except ArrayNotFound:
            record.doomed = True
            raise
        finally:
            record.finishing = False
            record.touch()
            if record.doomed:
                await self._room.drop(record)
        if record.doomed:  # deleted during verification
            raise self._unknown(record.id)

    async def remove(self, array_id: str) -> None:
        """Delete the array; pending and running tasks and processes that map it keep it until they end.

        Raises `ArrayNotFound`, and `ArrayConflict` for an array of another runtime.
        """
        if self._found(array_id) is None and self._outside(array_id) is not None:
            raise ArrayConflict(f"The array {array_id} belongs to another runtime on this machine: delete it there")
        await self._room.drop(self._record(array_id))

    async def info(self, array_id: str) -> ArrayInfo:
        """Return the description of an array of this or another runtime of this user; raise `ArrayNotFound` if unknown."""
        record = self._found(array_id)
        if record is None or record.doomed:
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
        if record is None or record.leaving:
            return info.model_copy(update={"path": None})
        record.exposed = True
        return info

    def page(self) -> ArrayPage:
        """Return all arrays of this runtime, newest first."""
        shown = sorted((record for record in self._records.values() if not record.doomed), key=lambda record: -record.created)
        return ArrayPage(
            arrays=[self._info(record) for record in shown],
            total_bytes=self.used_bytes,
            warm_bytes=self._room.warm.bytes,
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
            return record.layout if record.ready and not record.doomed and not record.leaving else None
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
                "parameters", f"there is no array {', '.join(missing[:5])}: it was deleted, has expired, or is not complete. Send it again."
            )
        for array_id in wanted:
            if (record := self._records.get(array_id)) is not None:
                record.leases.add(task_id)
                record.touch()

    def release(self, task_id: str, array_ids: Iterable[str]) -> None:
        """Release the leases of a finished task."""
        for array_id in array_ids:
            record = self._records.get(array_id)
            if record is not None:
                record.leases.discard(task_id)
                record.touch()
                if record.doomed and not record.leases:
                    self._room.drop_soon(record)

    def path_of(self, array_id: str) -> str:
        """Return the file of an array for an engine; raise `ArrayNotFound` if it is unknown."""
        record = self._records.get(array_id)
        path = record.path if record is not None and record.ready else self._outside(array_id)
        if path is None:
            raise self._unknown(array_id)
        return str(path)

    def places(self) -> list[tuple[str, int, int]]:
        """Return the folders for results, as `ArrayQuota.places` does."""
        return self._room.places()

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
                await self._room.require(sum(record.size for record in records))
            self._records.update((record.id, record) for record in records)
            for record in records:
                await self._finish(record)
            await self._room.files_created(records)
        except BaseException:
            for record in records:
                await self._room.drop(record)
            raise
        return [record.reference() for record in records]

    async def discard(self, task_id: str, attempt: int) -> None:
        """Remove the files of an attempt without a result."""
        await asyncio.to_thread(self._spool.discard, f"{result_name(task_id, attempt)}.")

    async def forget(self, task_id: str) -> None:
        """Delete the results of a deleted task."""
        for record in [record for record in self._records.values() if record.task_id == task_id]:
            await self._room.drop(record)

    @property
    def used_bytes(self) -> int:
        """Bytes of all array files, including those to be deleted after use."""
        return self._room.used

    @property
    def quota(self) -> int:
        """Maximum bytes of all arrays."""
        return self._room.quota

    def give_up(self, wanted: int) -> bool:
        """Start releasing `wanted` bytes of free blocks in memory. Return whether any will be released."""
        return self._room.warm.give_up(wanted)

    async def sweep(self, exists: Callable[[str], Awaitable[bool]] | None = None) -> None:
        """Delete expired arrays, abandoned unfinished ones, and those deleted while in use.

        If `exists(task_id)` is given, also delete the results of unknown tasks.
        """
        await self._room.sweep(self._writers, exists)

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
        if record is None or not record.lost:
            return record
        self._room.forget(record)
        return None

    def _record(self, array_id: str) -> ArrayRecord:
        record = self._found(array_id)
        if record is None or record.doomed:
            raise self._unknown(array_id)
        return record

    def _unknown(self, array_id: str) -> ArrayNotFound:
        return ArrayNotFound(
            f"There is no array {array_id[:120]}: it never existed, it or its file was deleted, or it was not used for "
            f"{self._settings.array_seconds:g} s"
        )

    def _info(self, record: ArrayRecord) -> ArrayInfo:
        return record.info(self._settings.array_seconds)
