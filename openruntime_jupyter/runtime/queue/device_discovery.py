"""Discovery of devices, and the lanes for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from openruntime_jupyter.engines.protocol import DeviceReport, Engine
from openruntime_jupyter.errors import EngineError, NoBackend, Unavailable
from openruntime_jupyter.runtime.metrics.gpu.base import Gpu
from openruntime_jupyter.runtime.queue.lane import Lane, Lanes
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.runtime.settings import Settings

log = logging.getLogger(__name__)


class DeviceDiscovery:
    """Opens the device lanes once a worker has reported its devices, and passes the GPUs to `set_gpus`."""

    def __init__(
        self, settings: Settings, engine: Engine, lanes: Lanes, scheduler: Scheduler, set_gpus: Callable[[Sequence[Gpu]], None]
    ) -> None:
        self.problem: EngineError | None = None
        """Why no device was found."""
        self.coming: list[asyncio.Task[Any]] = []
        """Running discovery, to be cancelled at the stop."""
        self._settings = settings
        self._engine = engine
        self._lanes = lanes
        self._scheduler = scheduler
        self._set_gpus = set_gpus

    def begin(self) -> None:
        """Start the discovery in the background."""
        opening = asyncio.get_running_loop().create_task(self._open(None))
        opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.coming = [opening]

    async def need(self, interpreter: str | None) -> None:
        """Wait until devices are known; raise `Unavailable` with advice if none is found.

        After a failure the next call tries again: the missing package may be installed by now.
        """
        if self._lanes.devices:
            return
        if self.coming[0].done():
            self.begin()
        try:
            await asyncio.shield(self.coming[0])
        except EngineError as problem:
            if isinstance(problem, NoBackend) and interpreter is not None:
                # The caller's environment may have the package that the server's lacks.
                await self._open(interpreter)
                return
            raise Unavailable(str(problem), retry_after=30.0) from problem

    async def _open(self, interpreter: str | None) -> None:
        try:
            found = await self._engine.devices(interpreter)
        except EngineError as problem:
            self.problem = problem
            log.warning("%s", problem)
            raise
        if self._lanes.devices:
            return
        lanes = [self._lane(number, report) for number, report in enumerate(found)]
        self._lanes.add(lanes)
        for lane in lanes:
            self._scheduler.open(lane)
        gpus = [(lane.id, lane.device) for lane in lanes if lane.device.type == "gpu"]
        self._set_gpus([Gpu(lane_id, device.index, device.name, device.capabilities) for lane_id, device in gpus])
        self.problem = None

    def _lane(self, number: int, report: DeviceReport) -> Lane:
        slots = self._settings.gpu_slots if report.type == "gpu" else self._settings.cpu_slot_count
        return Lane(f"device_{number}", report, slots, self._settings.aging_seconds, self._engine)
