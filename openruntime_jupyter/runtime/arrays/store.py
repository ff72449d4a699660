"""The arrays of a runtime: who may have room, who uses what, and when it goes.

A file is made in its full size, filled by whoever asked for it, and never changed once it is ready. Tasks that wait or run lease
their arrays here; whoever has one mapped leases its file (see `worker.blocks`), and the system frees that lease when they end, however
they end.
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
from openruntime_jupyter.runtime.arrays.rows import CHOSEN, OWN, Record, check_name, found, look, result_name, taken
from openruntime_jupyter.runtime.arrays.spool import SUFFIX, Spool
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.system_probe import Machine
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage, ArrayReference
from openruntime_jupyter.schemas.base import timestamp

log = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0
ROUNDS_OF_TASKS = 300
"""In one of how many sweeps it is seen whether the tasks are still known whose results are here."""


class ArrayStore:
    """Called on the runtime's loop, except `open` and `close`, which block."""

    def __init__(self, settings: Settings, runtime_id: str, machine: Machine) -> None:
        self._settings = settings
        self._spool = Spool(settings, runtime_id)
        self._records: dict[str, Record] = {}
        self._room = ArrayQuota(settings, self._spool, machine, self._records)
        self._writers: Counter[str] = Counter()

    # Life

    def open(self) -> None:
        """Make the folders, and take over what dead runtimes of this user left. Blocks."""
        for path in self._spool.open():
            if (record := found(path)) is not None:
                self._records[record.id] = record

    async def stop(self) -> None:
        """End what is done in the background, and `close`."""
        await self._room.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Remove what no task references, and let go of the folders. Blocks; never raises.

        What stays is for the next runtime: what waiting tasks need, and results that nobody has fetched yet, or that take no memory.
        """
        kept = [record for record in self._records.values() if self._outlives_us(record)]
        for record in kept:
            with contextlib.suppress(OSError):
                os.utime(record.path, times=(time.time(), time.time() - record.idle))  # by which the next runtime tells its age
        self._records.clear()
        self._room.warm.close()
        self._spool.close(frozenset(record.path for record in kept))

    def _outlives_us(self, record: Record) -> bool:
        if self._settings.embedded or not record.ready or record.expired(self._settings.array_seconds):
            return False
        if record.leases:
            return True
        in_memory = any(place.in_memory for place in self._spool.places if place.folder == record.folder)
        return record.task_id is not None and not record.doomed and not (in_memory and record.fetched)

    @property
    def problem(self) -> str | None:
        """Why no array can be kept now; None if they can."""
        return self._spool.problem

    # Whoever sends and fetches

    async def allocate(self, layout: Layout, owner: str | None = None, name: str | None = None) -> ArrayInfo:
        """Room for an array, in its full size; fill `path`, then call `ready`.

        Raises `InvalidRequest` for more than the quota, `ArrayConflict` for a name that is taken, and `StorageUnavailable` with
        figures where there is no room now.
        """
        array_id = check_name(name) if name is not None else make_id("arr")
        if (known := self._found(array_id)) is not None:
            raise taken(known)
        if layout.size > self.quota:
            raise InvalidRequest.of(
                "array", f"{gigabytes(layout.size)}, and all arrays together may have {gigabytes(self.quota)} (array_bytes)"
            )
        await self._room.require(layout.size)
        if (known := self._records.get(array_id)) is not None:
            raise taken(known)
        record = self._records[array_id] = Record(array_id, layout, Path(), owner, making=True)
        try:
            await self._room.make(record)
        except BaseException:
            self._records.pop(array_id, None)
            raise
        finally:
            record.making = False
        if record.doomed or array_id not in self._records:  # deleted, or the store closed, before it was there
            await self._room.drop(record)
            raise self._unknown(array_id)
        record.made = True
        return self._info(record)

    def require_free(self, name: str) -> None:
        """Raise `ArrayConflict` or `InvalidRequest` where nobody may send an array of that name."""
        record = self._found(name)
        if record is None:
            check_name(name)
        elif record.ready or name in self._writers or not record.made:
            raise taken(record)

    async def place_for(self, name: str, layout: Layout, owner: str | None) -> ArrayInfo:
        """Where an array that is sent under a name goes: into the room that was taken for it, or into new room.

        Raises what `allocate` raises, and `InvalidRequest` where the room was taken for something else.
        """
        self.require_free(name)
        record = self._records.get(name)
        if record is None:
            return await self.allocate(layout, owner, name)
        if (record.layout.shape, record.layout.dtype) != (layout.shape, layout.dtype):
            room = f"{record.layout.dtype}{list(record.layout.shape)}"
            raise InvalidRequest.of("body", f"it is {layout.dtype}{list(layout.shape)}, and the room was taken for {room}")
        return self._info(record)

    async def ready(self, array_id: str, *, sent: bool = False) -> ArrayInfo:
        """The array is filled: from now on it can be used, and not be changed. Raises `ArrayNotFound`, `ArrayConflict`.

        `sent`: so says who fills it through this process.
        """
        record = self._record(array_id)
        if record.ready or record.finishing:
            raise ArrayConflict(f"The array {array_id} is complete already.")
        if not record.made or (array_id in self._writers and not sent):
            raise ArrayConflict(f"The array {array_id} is just being sent: it is complete when that has ended.")
        await self._finish(record)
        return self._info(record)

    async def _finish(self, record: Record) -> None:
        """Raises `ArrayNotFound` where the file is not what it was said to be."""

        def finish() -> None:
            unfinished = record.folder / f"{record.id}{UNFINISHED}"
            if look(unfinished, record.id) != record.layout:
                raise ArrayNotFound(f"The array {record.id} is damaged: its header was changed")
            unfinished.chmod(0o400)
            unfinished.rename(record.folder / f"{record.id}{SUFFIX}")

        if record.leaving:  # a moment ago somebody has deleted it
            raise self._unknown(record.id)
        record.finishing = True
        try:
            await asyncio.to_thread(finish)
            record.ready = True
        except OSError as problem:
            record.doomed = True
            raise ArrayNotFound(f"The array {record.id} is gone ({problem.strerror}): send it again.") from None
        except ArrayNotFound:
            record.doomed = True
            raise
        finally:
            record.finishing = False
            record.touch()
            if record.doomed:
                await self._room.drop(record)
        if record.doomed:  # deleted meanwhile
            raise self._unknown(record.id)

    async def remove(self, array_id: str) -> None:
        """Delete the array; tasks that wait or run with it, and those who have it mapped, keep it.

        Raises `ArrayNotFound`, and `ArrayConflict` for another runtime's.
        """
        if self._found(array_id) is None and self._outside(array_id) is not None:
            raise ArrayConflict(f"The array {array_id} belongs to another runtime on this machine: delete it there.")
        await self._room.drop(self._record(array_id))

    async def info(self, array_id: str) -> ArrayInfo:
        """What is known of an array, of this or another runtime of this user; raises `ArrayNotFound`."""
        record = self._found(array_id)
        if record is None or record.doomed:
            return self._info(await self._elsewhere(array_id))
        if record.ready:
            record.touch()
            record.fetched = True
        return self._info(record)

    async def _elsewhere(self, array_id: str) -> Record:
        path = self._outside(array_id)
        record = await asyncio.to_thread(found, path) if path is not None else None
        if record is None:
            raise self._unknown(array_id)
        return record

    def exposed(self, told: ArrayInfo) -> ArrayInfo:
        """`told` for somebody who may open the file without leasing it: from now on that file is never used for another array.

        Where that can't be promised, because it is another runtime's or just being given away, the path is left out.
        """
        record = self._records.get(told.id)
        if record is None or record.leaving:
            return told.model_copy(update={"path": None})
        record.exposed = True
        return told

    def page(self) -> ArrayPage:
        """Every array of this runtime, newest first."""
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
        """While somebody fills the array through this process: it is not taken for abandoned."""
        self._writers[array_id] += 1  # of a name that was deleted meanwhile there may be two
        try:
            yield
        finally:
            self._writers[array_id] -= 1
            self._writers += Counter()  # forgets who has none

    # Tasks

    def known(self, array_id: str) -> Layout | None:
        """The layout of an array that can be used now; None if there is none."""
        record = self._found(array_id)
        if record is not None:
            return record.layout if record.ready and not record.doomed and not record.leaving else None
        path = self._outside(array_id)
        with contextlib.suppress(ArrayNotFound):
            return look(path, array_id) if path is not None else None
        return None

    def lease(self, array_ids: Iterable[str], task_id: str) -> None:
        """Keep these until `release`; raises `InvalidRequest` that names the ones that are not there, and keeps none then."""
        wanted = list(dict.fromkeys(array_ids))
        if not wanted:
            return
        missing = [array_id for array_id in wanted if self.known(array_id) is None]
        if missing:
            raise InvalidRequest.of(
                "parameters", f"there is no array {', '.join(missing[:5])}: it was deleted, is too old, or is not complete. Send it again."
            )
        for array_id in wanted:
            if (record := self._records.get(array_id)) is not None:
                record.leases.add(task_id)
                record.touch()

    def release(self, task_id: str, array_ids: Iterable[str]) -> None:
        """The task is at its end."""
        for array_id in array_ids:
            record = self._records.get(array_id)
            if record is not None:
                record.leases.discard(task_id)
                record.touch()
                if record.doomed and not record.leases:
                    self._room.drop_soon(record)

    def path_of(self, array_id: str) -> str:
        """For an engine: the file of an array; raises `ArrayNotFound`."""
        record = self._records.get(array_id)
        path = record.path if record is not None and record.ready else self._outside(array_id)
        if path is None:
            raise self._unknown(array_id)
        return str(path)

    def places(self) -> list[tuple[str, int, int]]:
        """For an engine: see `ArrayQuota.places`."""
        return self._room.places()

    async def adopt(self, owner: str | None, stored: Iterable[StoredArray]) -> list[ArrayReference]:
        """The result arrays that a worker has written are ours from now on.

        Raises `StorageUnavailable` where they go past the quota, and `ArrayNotFound` where a file is not what it was said to be; none
        of them is left then.
        """
        records = [
            Record(each.id, Layout(each.shape, each.dtype, each.kind), self._spool.places[each.place].folder, owner) for each in stored
        ]
        try:
            if records:
                await self._room.require(sum(record.size for record in records))
            self._records.update((record.id, record) for record in records)
            for record in records:
                await self._finish(record)
            await self._room.taken(records)
        except BaseException:
            for record in records:
                await self._room.drop(record)
            raise
        return [record.reference() for record in records]

    async def discard(self, task_id: str, attempt: int) -> None:
        """Remove what an attempt that gave no result has written."""
        await asyncio.to_thread(self._spool.discard, f"{result_name(task_id, attempt)}.")

    async def forget(self, task_id: str) -> None:
        """The task is erased, and its results with it."""
        for record in [record for record in self._records.values() if record.task_id == task_id]:
            await self._room.drop(record)

    @property
    def used_bytes(self) -> int:
        """Bytes of every array's file, those included that go as soon as nobody uses them."""
        return self._room.used

    @property
    def quota(self) -> int:
        """Bytes that all of them may have together."""
        return self._room.quota

    def give_up(self, wanted: int) -> bool:
        """Begin to give back that many bytes of memory which only wait for arrays to come; whether there are any."""
        return self._room.warm.give_up(wanted)

    async def sweep(self, exists: Callable[[str], Awaitable[bool]] | None = None) -> None:
        """Delete what is too old, what was abandoned half-written, and what was deleted while it was in use.

        Where `exists(task_id)` is given, also the results of tasks that are no longer known.
        """
        await self._room.sweep(self._writers, exists)

    async def run_sweeper(self, exists: Callable[[str], Awaitable[bool]]) -> None:
        """Sweep every few seconds, for as long as the runtime lives."""
        for rounds in itertools.count(1):
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep(exists if rounds % ROUNDS_OF_TASKS == 0 else None)
            except Exception:  # the next round may do better, and must come
                log.exception("Sweeping arrays failed")

    def _outside(self, array_id: str) -> Path | None:
        """The file of another runtime's array; nothing that is no name of an array is looked for."""
        return self._spool.elsewhere(array_id) if OWN.fullmatch(array_id) or CHOSEN.fullmatch(array_id) else None

    def _found(self, array_id: str) -> Record | None:
        """The record of an array; None where there is none, and where somebody has removed its file, which is noticed here."""
        record = self._records.get(array_id)
        if record is None or not record.lost:
            return record
        self._room.forget(record)
        return None

    def _record(self, array_id: str) -> Record:
        record = self._found(array_id)
        if record is None or record.doomed:
            raise self._unknown(array_id)
        return record

    def _unknown(self, array_id: str) -> ArrayNotFound:
        return ArrayNotFound(
            f"There is no array {array_id[:120]}: it never was, it or its file was deleted, or it was not used for "
            f"{self._settings.array_seconds:g} s."
        )

    def _info(self, record: Record) -> ArrayInfo:
        return record.info(self._settings.array_seconds)
