"""Admission: whether a task may start on a lane now."""

from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.engines.protocol import Engine
from openruntime_jupyter.errors import MemoryRefused, gigabytes
from openruntime_jupyter.runtime.metrics.gpu import NOTHING, GpuReadings
from openruntime_jupyter.runtime.queue.lane import Blocked, Lane, Queue
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.schemas.values import ModelSource


class Admission:
    """Admission by sessions, models, the operations' estimates and the memory that workers hold.

    `gpu(lane)` returns the figures of a lane's GPU. `release_memory(bytes)` begins to release memory that is kept only for speed, and
    returns whether there is any.
    """

    def __init__(
        self,
        engine: Engine,
        gpu: Callable[[Lane], GpuReadings] = lambda lane: NOTHING,
        release_memory: Callable[[int], bool] = lambda wanted: False,
    ) -> None:
        self._engine = engine
        self._gpu = gpu
        self._release_memory = release_memory

    def total(self, lane: Lane) -> int:
        """Return the memory of the lane's device in bytes."""
        return lane.memory_total

    def free(self, lane: Lane) -> int:
        """Return the free bytes of the device, less what running tasks will still allocate."""
        shared = lane.shares_memory
        left = lane.machine.memory().available if shared else self.total(lane)
        for entry in lane.sharing.values():
            if entry.needs is not None:
                left -= max(0, entry.needs - (self._engine.allocated(entry.task_id)) if shared else entry.needs)
        if not shared:
            figures = self._gpu(lane)  # the driver's include other programs' use
            if figures.memory_total is not None and figures.memory_used is not None:
                left = min(left, figures.memory_total - figures.memory_used)
        return max(0, left)

    def check(self, needs: int | None, queue: Queue) -> None:
        """Raise `MemoryRefused` with both sizes if the task can never fit on any device of its queue."""
        if needs is not None and queue.lanes and not any(needs <= self.total(lane) for lane in queue.lanes.values()):
            raise MemoryRefused.because(needs, max(map(self.total, queue.lanes.values())))

    def blocked_reason(self, lane: Lane, entry: Entry) -> Blocked | None:
        """Return why a task can't start now, or None. Idle models are unloaded for it."""
        if entry.session is not None and (reason := self._session_elsewhere(lane, entry)) is not None:
            return Blocked(reason, drains=False)
        if entry.python is not None and lane.python not in (None, entry.python):
            return Blocked(f"a host with Python {entry.python} ({lane.host} has {lane.python})", drains=False)
        model = entry.model.source if entry.model is not None else None
        if model is not None and not self._has(lane, model):
            return Blocked(self._hosts_with(lane, entry, model), drains=False)
        if model is not None and (reason := self._model_elsewhere(lane, entry, model)) is not None:
            return Blocked(reason, drains=False)
        if entry.needs is None:
            return None
        needs = entry.needs
        if model is not None:
            needs = max(0, needs - self._engine.models.holds(lane.id, model))
        free = self.free(lane)
        if needs <= free:
            return None
        others = lane.queues[entry.queue].lanes.values()
        if needs > self.total(lane) and any(needs <= self.total(other) for other in others):
            return Blocked(f"memory: it needs {gigabytes(needs)}, more than {lane.id} has", drains=False)
        if lane.shares_memory and not lane.host and self._release_memory(needs - free):
            room = "; memory that was kept for arrays is given back for it"
        else:
            leaving = self._engine.models.make_room(lane.id, model)
            room = f"; the idle model {leaving} is unloaded for it" if leaving else ""
        return Blocked(f"memory: it needs {gigabytes(needs)} and {gigabytes(free)} are free{room}")

    def _has(self, lane: Lane, model: ModelSource) -> bool:
        """Return whether the machine of the lane has the files of the model, or downloads them."""
        if model.kind == "hub":
            return True
        if not lane.host:
            return bool(model.path)
        return any(model.is_copy(stored) for stored in self._engine.stored_models().get(lane.host, ()))

    def _hosts_with(self, lane: Lane, entry: Entry, model: ModelSource) -> str:
        """Return which machines have the model, as a reason to wait for them."""
        having = [other.id for other in lane.queues[entry.queue].lanes.values() if self._has(other, model)]
        if having:
            return f"a host with the model {model.name}, such as {', '.join(having)}"
        hosts = [host for host, stored in self._engine.stored_models().items() if any(map(model.is_copy, stored))]
        others = ["this machine", *hosts] if model.path else hosts
        if others:
            return f"a host with the model {model.name}, which is on {', '.join(others)} but not on {entry.queue}"
        return f"a host with the model {model.name}, and none has it"

    def _session_elsewhere(self, lane: Lane, entry: Entry) -> str | None:
        """Return why a task of a session can't start on this lane: the session is busy, or has its variables on another device."""
        session = entry.session
        if session is None:
            return None
        if session.task_id is not None:
            return f"the session {session.name!r}, which runs {session.task_id}"
        if session.device != lane.id and session.device in lane.queues[entry.queue].lanes:
            return f"the session {session.name!r}, which is on {session.device}"
        return None

    def _model_elsewhere(self, lane: Lane, entry: Entry, model: ModelSource) -> str | None:
        """Return why a task can't start on this lane because of its model: it is busy, or loaded on another device with a free slot."""
        lanes = lane.queues[entry.queue].lanes
        loaded = [lanes[each] for each in self._engine.models.lanes(model) if each in lanes] if len(lanes) > 1 else []
        for other in (lane, *loaded):
            for running in other.running.values():
                if running.model is not None and running.model.source == model:
                    return f"the model {model.name}, which answers {running.task_id}"
        if lane not in loaded:
            for other in loaded:
                if other.free_slots and other.working and other.waiting_for is None:
                    return f"the model {model.name}, which is loaded on {other.id}"
        return None
