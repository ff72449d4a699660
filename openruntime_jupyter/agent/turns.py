"""Turns on the devices of this host: jobs take the same locks as the tasks of this host's own runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from openruntime_jupyter.engines.protocol import DeviceReport, Job
from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import DeviceSlotLock
from openruntime_jupyter.runtime.queue.device_lock import HOLDER_SECONDS, describe

log = logging.getLogger(__name__)

KEPT_SECONDS = 1.0
"""Time for which a slot that has become free is kept for the runtime's next job."""


class Turns:
    """Locks on the slots of devices, for jobs of one runtime.

    No job waits here. While other runtimes have all slots of a device, its jobs stay in the queue of their runtime, and this object waits
    for the first slot.

    Parameters
    ----------
    folder : locks of this host
    shared : devices on which runtimes take turns
    slots : returns the number of slots of a device of a type
    holder : facts about the runtime, for others who wait
    report : called with a lane and the holder of its device while no job can start, and with None once one can
    """

    def __init__(
        self,
        folder: Path,
        shared: Literal["gpu", "all", "none"],
        slots: Callable[[str], int],
        holder: Mapping[str, Any],
        report: Callable[[str, str | None], None],
    ) -> None:
        self._folder = folder
        self._shared = shared
        self._slots = slots
        self._holder = {"pid": os.getpid(), "task_id": None, "name": None, **holder}
        self._report = report
        self._locks: dict[str, list[DeviceSlotLock]] = {}
        """Locks of the slots by lane."""
        self._used: set[DeviceSlotLock] = set()
        """Locks of running jobs."""
        self._waits: dict[str, _Wait] = {}
        self._refused = False

    @contextmanager
    def take(self, lane: str, device: DeviceReport, job: Job) -> Iterator[bool]:
        """Hold a slot of the device for the job. The value is False if other runtimes have all of them."""
        if self._shared == "none" or (self._shared == "gpu" and device.type != "gpu"):
            yield True
            return
        try:
            lock = self._lock(lane, device)
        except StorageUnavailable as problem:
            if not self._refused:
                self._refused = True
                log.warning("Devices are not shared by turns: %s", problem)
            yield True
            return
        if lock is None:
            yield False
            return
        lock.update_holder({**self._holder, "task_id": job.task_id, "name": job.name or job.operation})
        self._used.add(lock)
        try:
            yield True
        finally:
            self._used.discard(lock)
            lock.release()
            self._end_wait(lane)  # the released slot is free

    def _lock(self, lane: str, device: DeviceReport) -> DeviceSlotLock | None:
        """Return the lock of a slot, which is held now; begin to wait for one and return None if none is free."""
        if (wait := self._waits.get(lane)) is not None:
            kept = wait.kept
            if kept is not None:
                self._end_wait(lane)
            return kept
        if lane not in self._locks:
            name = f"{device.type}{device.index}"
            self._locks[lane] = [DeviceSlotLock(self._folder, name, slot) for slot in range(self._slots(device.type))]
        others = [lock for lock in self._locks[lane] if lock not in self._used]
        for lock in others:
            if lock.try_acquire(self._holder):
                return lock
        if others:
            self._waits[lane] = _Wait(device.name, others, self._holder, partial(self._report, lane), partial(self._waits.pop, lane, None))
        return None

    def _end_wait(self, lane: str) -> None:
        if lane in self._waits:
            self._waits.pop(lane).end()

    def close(self) -> None:
        """Release all slots."""
        for lane in tuple(self._waits):
            self._end_wait(lane)
        for lock in (lock for locks in self._locks.values() for lock in locks):
            with contextlib.suppress(OSError):
                lock.close()


class _Wait:
    """Wait for the first free slot of a device. `expired` is called if no job has used that slot within `KEPT_SECONDS`."""

    def __init__(
        self,
        device: str,
        locks: list[DeviceSlotLock],
        holder: dict[str, Any],
        report: Callable[[str | None], None],
        expired: Callable[[], Any],
    ) -> None:
        self.kept: DeviceSlotLock | None = None
        """Lock of the slot for the next job, which is held."""
        self._device = device
        self._report = report
        self._expired = expired
        self._holder: str | None = None
        loop = asyncio.get_running_loop()
        self._acquiring = {loop.create_task(lock.acquire(holder)): lock for lock in locks}
        self._tell(describe(device, locks[0].holder()))
        self._waiting = loop.create_task(self._wait(locks[0]))

    def _tell(self, holder: str | None) -> None:
        if holder != self._holder:
            self._holder = holder
            self._report(holder)

    async def _wait(self, first: DeviceSlotLock) -> None:
        done: set[asyncio.Task[None]] = set()
        while not done:
            done, _ = await asyncio.wait(self._acquiring, timeout=HOLDER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._tell(describe(self._device, first.holder()))
        acquired = done.pop()
        lock = self._acquiring.pop(acquired)
        self._cancel()
        if acquired.exception() is None:  # else the next job reports that the locks can't be used
            self.kept = lock
            self._tell(None)
            await asyncio.sleep(KEPT_SECONDS)
            lock.release()
        self._tell(None)
        self._expired()

    def _cancel(self) -> None:
        """Wait for no other slot, and release those that were acquired at the same time."""
        for task, lock in self._acquiring.items():
            if not task.done():
                task.cancel()
            elif task.exception() is None:
                lock.release()
        self._acquiring.clear()

    def end(self) -> None:
        """Stop. The slot in `kept` stays locked."""
        self._waiting.cancel()
        self._cancel()
        self._tell(None)
