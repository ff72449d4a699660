"""Pool of workers that each keep one model between tasks. Idle ones hold memory, but no slot.

A model is unloaded by ending its worker, because only that reliably frees all of its memory.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from openruntime_jupyter.engines.protocol import Job, ModelReport, ModelUse
from openruntime_jupyter.engines.worker_process import WorkerProcess
from openruntime_jupyter.schemas.values import ModelSource


@dataclass(slots=True, eq=False)
class ResidentModel:
    """Worker with its model; `task_id` is None while it is idle."""

    worker: WorkerProcess
    lane: str
    use: ModelUse
    task_id: str | None
    idle_since: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    ending: bool = False


class ModelPool:
    """Pool of loaded models. At most `most` models stay idle; `grace` is the time in seconds for a worker to exit."""

    def __init__(self, most: int, grace: float, resident_bytes: Callable[[int], int | None]) -> None:
        self._most = most
        self._grace = grace
        self._resident_bytes = resident_bytes
        self._all: list[ResidentModel] = []

    def take(self, job: Job) -> WorkerProcess | None:
        """Return the idle worker that keeps the job's model, or None."""
        assert job.model is not None
        found = self._find(job.lane, job.model.source)
        if found is None or found.task_id is not None:
            return None
        self._cancel_timer(found)
        found.task_id, found.use = job.task_id, job.model
        return found.worker

    def adopt(self, job: Job, worker: WorkerProcess) -> None:
        """Assign a worker to the job's model."""
        assert job.model is not None
        resident = ResidentModel(worker, job.lane, job.model, job.task_id)
        self._all.append(resident)
        worker.dead.add_done_callback(lambda _: self._remove(resident))
        self._enforce_limit(1)

    def release(self, job: Job, keeps: bool) -> None:
        """Mark the job's worker as idle, or end it unless it `keeps` the model."""
        resident = next((each for each in self._all if each.task_id == job.task_id), None)
        if resident is None:
            return
        resident.task_id, resident.idle_since = None, time.monotonic()
        if not keeps or resident.use.keep_alive <= 0:
            self._end(resident)
            return
        resident.timer = asyncio.get_running_loop().call_later(resident.use.keep_alive, self._end, resident)
        self._enforce_limit(0)

    def mark_ending(self, worker: WorkerProcess) -> None:
        """Mark a worker as ending because other code ends it."""
        for resident in self._all:
            if resident.worker is worker:
                resident.task_id, resident.ending = None, True

    def reports(self) -> list[ModelReport]:
        """Return the loaded models, least recently used first."""
        now = time.monotonic()
        return [
            ModelReport(
                name=each.use.source.name,
                lane=each.lane,
                state="busy" if each.task_id is not None else "idle",
                resident=self._resident_bytes(each.worker.pid),
                keep_alive=each.use.keep_alive,
                idle_seconds=None if each.task_id is not None else now - each.idle_since,
                task_id=each.task_id,
            )
            for each in sorted(self._living(), key=lambda each: each.idle_since)
        ]

    def workers(self) -> list[tuple[WorkerProcess, str]]:
        """Return each worker that keeps a model, with the model's name."""
        return [(each.worker, each.use.source.name) for each in self._all]

    def lanes(self, model: ModelSource) -> list[str]:
        """Return the lanes whose workers keep this model."""
        return [each.lane for each in self._living() if each.use.source == model]

    def holds(self, lane: str, model: ModelSource) -> int:
        """Return the bytes of the worker that keeps this model; 0 if it is not loaded."""
        found = self._find(lane, model)
        return (self._resident_bytes(found.worker.pid) or 0) if found is not None else 0

    def make_room(self, lane: str, keep: ModelSource | None) -> str | None:
        """Start unloading the model that is idle the longest and return its name; if one is already being unloaded, return its name."""
        leaving = next((each for each in self._all if each.ending and each.lane == lane), None)
        if leaving is not None:
            return leaving.use.source.name
        idle = [each for each in self._idle() if each.lane == lane and each.use.source != keep]
        if not idle:
            return None
        self._end(idle[0])
        return idle[0].use.source.name

    async def unload(self, name: str | None) -> list[str]:
        """Unload the idle models of that name, or all, and wait until their processes have ended."""
        chosen = [each for each in self._idle() if name is None or each.use.source.name == name]
        for resident in chosen:
            self._end(resident)
        if chosen:
            await asyncio.wait([each.worker.dead for each in chosen])
        return [each.use.source.name for each in chosen]

    def close(self) -> None:
        """Cancel all timers; the engine ends the workers."""
        for resident in self._all:
            self._cancel_timer(resident)

    def _living(self) -> list[ResidentModel]:
        return [each for each in self._all if not each.ending]

    def _idle(self) -> list[ResidentModel]:
        return sorted((each for each in self._living() if each.task_id is None), key=lambda each: each.idle_since)

    def _find(self, lane: str, model: ModelSource) -> ResidentModel | None:
        return next((each for each in self._living() if each.lane == lane and each.use.source == model), None)

    def _enforce_limit(self, coming: int) -> None:
        idle = self._idle()
        for resident in idle[: max(0, len(idle) + coming - max(self._most, coming))]:
            self._end(resident)

    def _cancel_timer(self, resident: ResidentModel) -> None:
        if resident.timer is not None:
            resident.timer.cancel()
            resident.timer = None

    def _end(self, resident: ResidentModel) -> None:
        self._cancel_timer(resident)
        if resident.ending:
            return
        resident.ending = True
        resident.worker.leave()
        asyncio.get_running_loop().call_later(self._grace, resident.worker.signal_group, signal.SIGKILL)

    def _remove(self, resident: ResidentModel) -> None:
        self._cancel_timer(resident)
        self._all.remove(resident)
