"""Taking turns on a device with the other runtimes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import DeviceSlotLock
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.entry import Entry

log = logging.getLogger(__name__)

TELL_SECONDS = 0.25


class DeviceLock:
    """A lock for each slot of each shared device; a lane that waits says for whom."""

    def __init__(self, settings: Settings, runtime_id: str) -> None:
        self._settings = settings
        self._runtime = runtime_id
        self._locks: dict[tuple[str, int], DeviceSlotLock] = {}
        self._refused = False

    def shared(self, lane: Lane) -> bool:
        """Whether this lane takes turns at all."""
        if self._settings.device_lock == "all":
            return lane.device.type in ("gpu", "cpu")
        return self._settings.device_lock == "gpu" and lane.device.type == "gpu"

    async def begin(self, lane: Lane, slot: int) -> None:
        """Wait for this slot's turn. Where the locks can't be used, that is logged and the lane goes on without."""
        lock = self._lock(lane, slot)
        me = self._words(None)
        try:
            if lock.try_acquire(me):
                return
            telling = asyncio.create_task(self._tell_who(lane, lock))
            try:
                await lock.acquire(me)
            finally:
                telling.cancel()
                lane.waiting_for = None
        except StorageUnavailable as problem:
            if not self._refused:
                self._refused = True
                log.warning("Devices are not shared by turns: %s", problem)

    async def _tell_who(self, lane: Lane, lock: DeviceSlotLock) -> None:
        while True:
            lane.waiting_for = describe(lane, lock.holder())
            await asyncio.sleep(TELL_SECONDS)

    def tell(self, lane: Lane, slot: int, entry: Entry) -> None:
        """Say which task has the slot now."""
        self._lock(lane, slot).retell(self._words(entry))

    def end(self, lane: Lane, slot: int) -> None:
        """Leave the slot to whoever is next."""
        self._lock(lane, slot).release()

    def close(self) -> None:
        """Leave everything."""
        for lock in self._locks.values():
            with contextlib.suppress(OSError):
                lock.close()

    def _lock(self, lane: Lane, slot: int) -> DeviceSlotLock:
        # Named by what the device is, not by its id here: another runtime may count fewer devices.
        key = (f"{lane.device.type}{lane.device.index}", slot)
        if key not in self._locks:
            self._locks[key] = DeviceSlotLock(self._settings.locks, *key)
        return self._locks[key]

    def _words(self, entry: Entry | None) -> dict[str, Any]:
        return {
            "runtime": self._runtime,
            "label": self._settings.label,
            "pid": os.getpid(),
            "task_id": entry.task_id if entry is not None else None,
            "name": (entry.name or entry.operation) if entry is not None else None,
        }


def describe(lane: Lane, holder: dict[str, Any] | None) -> str:
    """Who has the device, as a waiting task tells it."""
    if holder is None:
        return f"the {lane.device.name}, which another runtime on this machine has"
    who = holder.get("label") or f"process {holder.get('pid')}"
    what = holder.get("name")
    task = f" runs {what} ({holder.get('task_id')})" if what else " has it"
    return f"the {lane.device.name}: the runtime of {who}{task}"
