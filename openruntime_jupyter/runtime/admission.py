"""Whether a task's memory is there: refused, admitted, or told what it waits for."""

from __future__ import annotations

from collections.abc import Callable

from openruntime_jupyter.errors import MemoryRefused, gigabytes
from openruntime_jupyter.runtime.entry import Entry
from openruntime_jupyter.runtime.lane import Lane
from openruntime_jupyter.runtime.machine import Machine


class Admission:
    """Judges by what operations estimate. `resident(task_id)` gives the bytes that a running task's worker holds."""

    def __init__(self, machine: Machine, resident: Callable[[str], int | None]) -> None:
        self._machine = machine
        self._resident = resident

    def machine_total(self) -> int:
        """The machine's memory in bytes."""
        return self._machine.total

    def total(self, lane: Lane) -> int:
        """The device's memory in bytes; the machine's (or container's) where the device has none of its own."""
        machine = self._machine.total
        own = lane.device.memory
        if own is None:
            return machine
        return min(own, machine) if _shares_memory(lane) else own

    def free(self, lane: Lane) -> int:
        """Bytes left on the device, without what running tasks are still going to take."""
        left = self._machine.memory().available if _shares_memory(lane) else self.total(lane)
        for entry in lane.running.values():
            if entry.needs is not None:
                left -= max(0, entry.needs - (self._resident(entry.task_id) or 0) if _shares_memory(lane) else entry.needs)
        return max(0, left)

    def check(self, needs: int | None, lane: Lane) -> None:
        """Raise `MemoryRefused` with both figures for what can never fit."""
        if needs is not None and needs > self.total(lane):
            raise MemoryRefused(needs, self.total(lane))

    def why_not(self, entry: Entry) -> str | None:
        """What a task waits for; None if it may start."""
        if entry.needs is None:
            return None
        free = self.free(entry.lane)
        if entry.needs <= free:
            return None
        return f"memory: it needs {gigabytes(entry.needs)} and {gigabytes(free)} are free"


def _shares_memory(lane: Lane) -> bool:
    return lane.device.type == "cpu" or "unified_memory" in lane.device.capabilities
