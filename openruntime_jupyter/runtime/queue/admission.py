"""Memory admission of tasks."""

from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.engines.protocol import Engine
from openruntime_jupyter.errors import MemoryRefused, gigabytes
from openruntime_jupyter.runtime.metrics.gpu.base import NOTHING, GpuFigures
from openruntime_jupyter.runtime.queue.lane import Blocked, Lane
from openruntime_jupyter.runtime.system_probe import Machine
from openruntime_jupyter.runtime.tasks.entry import Entry


class Admission:
    """Memory admission by the operations' estimates and the memory that workers hold.

    `gpu(device)` tells a GPU's figures. `give_up(bytes)` begins to give back memory that is only kept to be quick, and says whether there
    is any.
    """

    def __init__(
        self,
        machine: Machine,
        engine: Engine,
        gpu: Callable[[str], GpuFigures] = lambda device: NOTHING,
        give_up: Callable[[int], bool] = lambda wanted: False,
    ) -> None:
        self._machine = machine
        self._engine = engine
        self._gpu = gpu
        self._give_up = give_up

    def machine_total(self) -> int:
        """Return the machine's memory in bytes."""
        return self._machine.total

    def total(self, lane: Lane) -> int:
        """Return the device's memory in bytes; for a device that shares it, the machine's or container's."""
        machine = self._machine.total
        own = lane.device.memory
        if own is None:
            return machine
        return min(own, machine) if _shares_memory(lane) else own

    def free(self, lane: Lane) -> int:
        """Return the free bytes of the device, less what running tasks will still allocate."""
        left = self._machine.memory().available if _shares_memory(lane) else self.total(lane)
        seen = None if _shares_memory(lane) else self._seen_free(lane)
        for entry in lane.running.values():
            if entry.needs is not None:
                left -= max(0, entry.needs - (self._engine.resident(entry.task_id) or 0) if _shares_memory(lane) else entry.needs)
        return max(0, left if seen is None else min(left, seen))

    def _seen_free(self, lane: Lane) -> int | None:
        """Return the free bytes that the driver reports, which include other programs' use; None if unreadable."""
        figures = self._gpu(lane.id)
        if figures.memory_total is None or figures.memory_used is None:
            return None
        return figures.memory_total - figures.memory_used

    def check(self, needs: int | None, lane: Lane) -> None:
        """Raise `MemoryRefused` with both sizes if the task can never fit."""
        if needs is not None and needs > self.total(lane):
            raise MemoryRefused(needs, self.total(lane))

    def blocked_reason(self, entry: Entry) -> Blocked | None:
        """Return why a task can't start now, or None. Idle models are unloaded for it."""
        if entry.session is not None and entry.session.task_id is not None:
            return Blocked(f"the session {entry.session.name!r}, which runs {entry.session.task_id}", drains=False)
        model = entry.model.source if entry.model is not None else None
        if model is not None:
            for other in entry.lane.running.values():
                if other.model is not None and other.model.source == model:
                    return Blocked(f"the model {model.name}, which answers {other.task_id}", drains=False)
        if entry.needs is None:
            return None
        needs = entry.needs
        if model is not None:
            needs = max(0, needs - self._engine.holds(entry.lane.id, model))
        free = self.free(entry.lane)
        if needs <= free:
            return None
        if _shares_memory(entry.lane) and self._give_up(needs - free):
            room = "; memory that was kept for arrays is given back for it"
        else:
            leaving = self._engine.make_room(entry.lane.id, model)
            room = f"; the idle model {leaving} is unloaded for it" if leaving else ""
        return Blocked(f"memory: it needs {gigabytes(needs)} and {gigabytes(free)} are free{room}")


def _shares_memory(lane: Lane) -> bool:
    return lane.device.type == "cpu" or "unified_memory" in lane.device.capabilities
