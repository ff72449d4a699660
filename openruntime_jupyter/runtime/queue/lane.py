"""Lanes: queue and slots of each device, and what may start on it."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from heapq import heapify, heapreplace
from typing import NamedTuple

from sortedcontainers import SortedDict

from openruntime_jupyter.engines.protocol import DeviceReport, Engine, JobRunner
from openruntime_jupyter.errors import MemoryRefused, UnknownDevice, gigabytes
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.metrics.gpu import NOTHING, GpuReadings
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey

LOOK_PAST = 100
"""Number of tasks checked behind a task that waits for memory."""

LAST_ESTIMATED = 100
"""Last position in the queue with an estimated start. An estimate takes up to 0.1 ms, and later ones would mean little."""

RECENT_DURATIONS = 20
"""Durations kept for each kind."""
KINDS_KEPT = 500
"""Kinds kept; the least recently used is dropped."""


class Durations:
    """Recent durations of completed tasks, in seconds, by kind."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def add(self, kind: Hashable, seconds: float) -> None:
        """Add the duration of a task."""
        self._of.setdefault(kind, deque(maxlen=RECENT_DURATIONS)).append(seconds)
        self._of.move_to_end(kind)
        if len(self._of) > KINDS_KEPT:
            self._of.popitem(last=False)

    def typical(self, kind: Hashable) -> float | None:
        """Return the median duration; None before the first task of this kind has completed."""
        return self.left(kind, 0.0)

    def left(self, kind: Hashable, elapsed: float) -> float | None:
        """Return the remaining seconds of a task that has run for `elapsed` seconds, by the durations that are longer."""
        known = sorted(self._of.get(kind, ()))
        longer = bisect_right(known, elapsed)
        return None if longer == len(known) else known[(longer + len(known)) // 2] - elapsed


class Blocked(NamedTuple):
    """Reason why a task can't start now, and whether the lane drains for it after a long wait."""

    reason: str
    drains: bool = True


Fits = Callable[["Lane", Entry], "Blocked | None"]


class Lane:
    """Pending and running tasks of one device.

    `changed` is set whenever a slot whose task waits for memory may find something new to do.
    """

    def __init__(self, lane_id: str, device: DeviceReport, slots: int, aging_seconds: float, engine: JobRunner) -> None:
        self.id = lane_id
        self.device = device
        self.engine = engine
        self.slots = slots
        self.running: dict[str, Entry] = {}
        self.waiting_for: str | None = None
        """Why the whole lane waits: the holder of the device in another runtime."""
        self.changed = asyncio.Event()
        self.idle_blocked_since: float | None = None
        self._aging_seconds = aging_seconds
        # A sorted list, not a heap: positions are ranks, and cancelled or moved tasks are removed at once.
        self._pending: SortedDict[QueueKey, Entry] = SortedDict()
        self._durations = Durations()
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def first(self, number: int | None = None) -> list[Entry]:
        """Return the first `number` pending tasks, or all, in queue order."""
        return list(self._pending.values()[:number])

    @property
    def shares_memory(self) -> bool:
        """True if the device computes in the machine's memory."""
        return self.device.type == "cpu" or "unified_memory" in self.device.capabilities

    def add(self, entry: Entry) -> None:
        """Add a pending task at the position of its key."""
        self._pending[entry.key] = entry
        self.changed.set()
        while self._idle:
            slot = self._idle.pop()
            if not slot.done():
                slot.set_result(None)
                return

    async def wait_for_task(self) -> None:
        """Wait until a task is added. Each added task wakes one slot."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(slot)
        await slot

    def wake(self) -> None:
        """Wake all slots."""
        self.changed.set()
        idle, self._idle = self._idle, []
        for slot in idle:
            if not slot.done():
                slot.set_result(None)

    def remove(self, entry: Entry) -> bool:
        """Remove a pending task; return False if it is not in this lane."""
        return self._pending.pop(entry.key, None) is not None

    def move(self, entry: Entry, priority: int) -> None:
        """Change the priority of a pending task and keep its submission time."""
        self.remove(entry)
        entry.priority = priority
        entry.key = QueueKey.of(entry.submitted_mono, priority, self._aging_seconds, entry.key.sequence)
        self.add(entry)

    def take(self, fits: Fits) -> Entry | None:
        """Remove and return the next task that can start now. `fits(lane, entry)` returns why a task can't, or None.

        Smaller tasks may pass a blocked one for `aging_seconds`; then the lane drains for it.
        """
        now = time.monotonic()
        for index in range(min(len(self._pending), LOOK_PAST)):
            entry: Entry = self._pending.peekitem(index)[1]
            blocked = fits(self, entry)
            if blocked is None:
                entry.waiting_for = None
                entry.blocked_since = None
                del self._pending[entry.key]
                self.idle_blocked_since = None
                return entry
            entry.waiting_for = blocked.reason
            if not blocked.drains:
                continue
            if entry.blocked_since is None:
                entry.blocked_since = now
            if now - entry.blocked_since >= self._aging_seconds:
                return None
        return None

    def head_timed_out(self, seconds: float) -> Entry | None:
        """Return the first task if it has blocked the idle lane for `seconds`."""
        if self.running or not self._pending:
            self.idle_blocked_since = None
            return None
        now = time.monotonic()
        if self.idle_blocked_since is None:
            self.idle_blocked_since = now
        if now - self.idle_blocked_since < seconds:
            return None
        self.idle_blocked_since = None
        head: Entry = self._pending.peekitem(0)[1]
        return head

    def position(self, entry: Entry) -> int | None:
        """Return the task's position, 1 for the next; None if it is not pending here."""
        return self._pending.bisect_left(entry.key) + 1 if entry.key in self._pending else None

    def add_duration(self, entry: Entry, seconds: float) -> None:
        """Add the duration of a completed task to the estimates."""
        self._durations.add(entry.kind, seconds)

    def estimate(self, entry: Entry) -> float | None:
        """Return the estimated start, in seconds since the epoch.

        Each task before it takes the slot that becomes free first, for the time that its kind usually takes. None if an unknown time
        could change the result: a kind that has not completed yet, a running task without progress that takes longer than usual, a
        wait for memory, a session or another runtime.
        """
        position = self.position(entry)
        if position is None or position > LAST_ESTIMATED or self.waiting_for is not None or entry.waiting_for is not None:
            return None
        free = [0.0] * (self.slots - len(self.running)) + [_or_never(self._left(other)) for other in self.running.values()]
        heapify(free)
        for before in self._pending.values()[: position - 1]:
            heapreplace(free, free[0] + _or_never(self._durations.typical(before.kind)))
        return time.time() + free[0] if free[0] < math.inf else None

    def _left(self, entry: Entry) -> float | None:
        """Return the remaining seconds of a running task."""
        return entry.time_left() or self._durations.left(entry.kind, entry.elapsed() or 0.0)


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


class Lanes:
    """Lanes of a runtime by id: those of devices, once they are known, and the one of operations that need no device."""

    def __init__(self) -> None:
        self.devices: dict[str, Lane] = {}
        self.remote: Lane | None = None
        """Lane of operations that need no device."""
        self._all: dict[str, Lane] = {}
        self._places: dict[str, Lane] = {}

    def add(self, lanes: list[Lane]) -> None:
        """Add the lanes of the devices."""
        self.devices = {lane.id: lane for lane in lanes}
        self._all |= self.devices
        first = {lane.device.type: lane for lane in reversed(lanes)}
        gpu, cpu = first.get("gpu", lanes[0]), first.get("cpu", lanes[0])
        self._places = {"auto": gpu, "gpu": gpu, "cpu": cpu, **self.devices}

    def add_remote(self, lane: Lane) -> None:
        """Add the lane of operations that need no device."""
        self.remote = self._all[lane.id] = lane

    def __getitem__(self, lane_id: str) -> Lane:
        return self._all[lane_id]

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._all.values())

    def place(self, preference: str) -> Lane:
        """Return the lane for `auto`, `gpu`, `cpu` or a device id; raise `UnknownDevice`. Without a GPU, `gpu` is the CPU."""
        lane = self._places.get(preference)
        if lane is None:
            problem = f"unknown device {preference!r}; known are auto, gpu, cpu, {', '.join(self.devices)}"
            raise UnknownDevice(f"device_preference: {problem}", [{"field": "device_preference", "problem": problem}])
        return lane

    @property
    def has_gpu(self) -> bool:
        """True if one of the devices is a GPU."""
        return any(lane.device.type == "gpu" for lane in self.devices.values())

    @property
    def pending(self) -> int:
        """Number of pending tasks."""
        return sum(map(len, self))

    @property
    def running(self) -> int:
        """Number of running tasks."""
        return sum(len(lane.running) for lane in self)

    def next_up(self, limit: int, offset: int = 0) -> list[Entry]:
        """Return pending tasks by position: the first of each lane, then the second of each lane, and so on."""
        placed = ((place, number, entry) for number, lane in enumerate(self) for place, entry in enumerate(lane.first(offset + limit)))
        return [entry for *_, entry in sorted(placed, key=lambda each: each[:2])[offset : offset + limit]]


class Admission:
    """Memory admission by the operations' estimates and the memory that workers hold.

    `gpu(device)` returns a GPU's figures. `release_memory(bytes)` begins to release memory that is kept only for speed, and returns whether
    there is any.
    """

    def __init__(
        self,
        machine: Machine,
        engine: Engine,
        gpu: Callable[[str], GpuReadings] = lambda device: NOTHING,
        release_memory: Callable[[int], bool] = lambda wanted: False,
    ) -> None:
        self._machine = machine
        self._engine = engine
        self._gpu = gpu
        self._release_memory = release_memory

    def machine_total(self) -> int:
        """Return the machine's memory in bytes."""
        return self._machine.total

    def total(self, lane: Lane) -> int:
        """Return the device's memory in bytes; for a device that shares it, the machine's or container's."""
        machine = self._machine.total
        own = lane.device.memory
        if own is None:
            return machine
        return min(own, machine) if lane.shares_memory else own

    def free(self, lane: Lane) -> int:
        """Return the free bytes of the device, less what running tasks will still allocate."""
        shared = lane.shares_memory
        left = self._machine.memory().available if shared else self.total(lane)
        for entry in lane.running.values():
            if entry.needs is not None:
                left -= max(0, entry.needs - (self._engine.allocated(entry.task_id)) if shared else entry.needs)
        if not shared:
            figures = self._gpu(lane.id)  # the driver's include other programs' use
            if figures.memory_total is not None and figures.memory_used is not None:
                left = min(left, figures.memory_total - figures.memory_used)
        return max(0, left)

    def check(self, needs: int | None, lane: Lane) -> None:
        """Raise `MemoryRefused` with both sizes if the task can never fit."""
        if needs is not None and needs > self.total(lane):
            raise MemoryRefused.because(needs, self.total(lane))

    def blocked_reason(self, lane: Lane, entry: Entry) -> Blocked | None:
        """Return why a task can't start now, or None. Idle models are unloaded for it."""
        if entry.session is not None and entry.session.task_id is not None:
            return Blocked(f"the session {entry.session.name!r}, which runs {entry.session.task_id}", drains=False)
        model = entry.model.source if entry.model is not None else None
        if model is not None:
            for other in lane.running.values():
                if other.model is not None and other.model.source == model:
                    return Blocked(f"the model {model.name}, which answers {other.task_id}", drains=False)
        if entry.needs is None:
            return None
        needs = entry.needs
        if model is not None:
            needs = max(0, needs - self._engine.models.holds(lane.id, model))
        free = self.free(lane)
        if needs <= free:
            return None
        if lane.shares_memory and self._release_memory(needs - free):
            room = "; memory that was kept for arrays is given back for it"
        else:
            leaving = self._engine.models.make_room(lane.id, model)
            room = f"; the idle model {leaving} is unloaded for it" if leaving else ""
        return Blocked(f"memory: it needs {gigabytes(needs)} and {gigabytes(free)} are free{room}")
