"""Turns on the devices of this host: jobs take the same locks as the tasks of this host's own runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from openruntime_jupyter.engines.protocol import DeviceReport, Job
from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import DeviceSlotLock
from openruntime_jupyter.runtime.queue.device_lock import HOLDER_SECONDS, describe

log = logging.getLogger(__name__)


class Turns:
    """Locks on the slots of devices, for jobs of one runtime.

    Parameters
    ----------
    folder : locks of this host
    shared : devices on which runtimes take turns
    holder : facts about the runtime, for others who wait
    """

    def __init__(self, folder: Path, shared: Literal["gpu", "all", "none"], holder: dict[str, Any]) -> None:
        self._folder = folder
        self._shared = shared
        self._holder = {"pid": os.getpid(), **holder}
        self._locks: dict[tuple[str, int], DeviceSlotLock] = {}
        self._used: set[tuple[str, int]] = set()
        self._refused = False

    @asynccontextmanager
    async def take(self, device: DeviceReport, job: Job, waiting: Callable[[str | None], None]) -> AsyncIterator[None]:
        """Hold a free slot of the device. `waiting` is called with the holder of the device while another runtime has it."""
        if self._shared == "none" or (self._shared == "gpu" and device.type != "gpu"):
            yield
            return
        name, slot = f"{device.type}{device.index}", 0
        while (name, slot) in self._used:
            slot += 1
        self._used.add((name, slot))
        try:
            lock = self._locks.setdefault((name, slot), DeviceSlotLock(self._folder, name, slot))
            await self._acquire(lock, device, {**self._holder, "task_id": job.task_id, "name": job.operation}, waiting)
            yield
        finally:
            self._used.discard((name, slot))
            if (name, slot) in self._locks:
                self._locks[name, slot].release()

    async def _acquire(
        self, lock: DeviceSlotLock, device: DeviceReport, holder: dict[str, Any], waiting: Callable[[str | None], None]
    ) -> None:
        try:
            if lock.try_acquire(holder):
                return
            acquiring = asyncio.ensure_future(lock.acquire(holder))
            try:
                while not acquiring.done():
                    waiting(describe(device.name, lock.holder()))
                    await asyncio.wait({acquiring}, timeout=HOLDER_SECONDS)
                acquiring.result()
                waiting(None)
            finally:
                acquiring.cancel()
                await asyncio.wait({acquiring})
        except StorageUnavailable as problem:
            if not self._refused:
                self._refused = True
                log.warning("Devices are not shared by turns: %s", problem)

    def close(self) -> None:
        """Release all slots."""
        for lock in self._locks.values():
            with contextlib.suppress(OSError):
                lock.close()
