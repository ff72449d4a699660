"""Device locks between the runtimes of one machine."""

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

HOLDER_SECONDS = 0.25
"""Seconds between two looks at the holder of a taken device."""
HOST_POLL = 0.05
"""Seconds between two looks whether the agent of a host has its device."""


class DeviceLock:
    """File locks, one for each slot of each shared device. A waiting lane names the holder."""

    def __init__(self, settings: Settings, runtime_id: str) -> None:
        self._settings = settings
        self._runtime = runtime_id
        self._locks: dict[tuple[str, int], DeviceSlotLock] = {}
        self._refused = False

    def shared(self, lane: Lane) -> bool:
        """Return whether the lane's device is shared with other local runtimes. The agents of other hosts take their locks."""
        if lane.host:
            return False
        if self._settings.device_lock == "all":
            return lane.device.type in ("gpu", "cpu")
        return self._settings.device_lock == "gpu" and lane.device.type == "gpu"

    async def acquire(self, lane: Lane, slot: int) -> None:
        """Lock the slot, or return without the lock once the lane is closed. If locks can't be used, log it and continue without."""
        lock = self._lock(lane, slot)
        holder = self._holder(None)
        try:
            if not lock.try_acquire(holder):
                await self._wait(lane, lock, holder)
        except StorageUnavailable as problem:
            if not self._refused:
                self._refused = True
                log.warning("Devices are not shared by turns: %s", problem)

    @staticmethod
    async def _wait(lane: Lane, lock: DeviceSlotLock, holder: dict[str, Any]) -> None:
        """Wait for the lock and show its holder. Other lanes take the waiting tasks, as far as they can."""
        waiting = asyncio.ensure_future(lock.acquire(holder))
        try:
            while not waiting.done() and lane.open:
                lane.waiting_for = describe(lane.device.name, lock.holder())
                lane.pass_on()
                await asyncio.wait({waiting}, timeout=HOLDER_SECONDS)
            if waiting.done():
                waiting.result()
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})
            lane.waiting_for = None

    @staticmethod
    async def wait_for_host(lane: Lane) -> None:
        """Wait while another runtime of the lane's host has the device. The agent keeps the place in its queue."""
        while lane.open and (holder := lane.holder()) is not None:
            lane.waiting_for = holder
            lane.pass_on()
            await asyncio.sleep(HOST_POLL)
        lane.waiting_for = None

    def show(self, lane: Lane, slot: int, entry: Entry) -> None:
        """Write the running task into the lock file."""
        self._lock(lane, slot).update_holder(self._holder(entry))

    def release(self, lane: Lane, slot: int) -> None:
        """Unlock the slot."""
        self._lock(lane, slot).release()

    def close(self) -> None:
        """Unlock all slots."""
        for lock in self._locks.values():
            with contextlib.suppress(OSError):
                lock.close()

    def _lock(self, lane: Lane, slot: int) -> DeviceSlotLock:
        # Named by the device, not by its id: another runtime may number devices differently.
        key = (f"{lane.device.type}{lane.device.index}", slot)
        if key not in self._locks:
            self._locks[key] = DeviceSlotLock(self._settings.locks, *key)
        return self._locks[key]

    def _holder(self, entry: Entry | None) -> dict[str, Any]:
        return {
            "runtime": self._runtime,
            "label": self._settings.label,
            "pid": os.getpid(),
            "task_id": entry.task_id if entry is not None else None,
            "name": (entry.name or entry.operation) if entry is not None else None,
        }


def describe(device: str, holder: dict[str, Any] | None) -> str:
    """Describe the holder of the device with that name, for `waiting_for`."""
    if holder is None:
        return f"the {device}, used by another runtime on this machine"
    who = holder.get("label") or f"process {holder.get('pid')}"
    what = holder.get("name")
    task = f" runs {what} ({holder.get('task_id')})" if what else " has it"
    return f"the {device}: the runtime of {who}{task}"
