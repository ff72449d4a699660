"""Queues of waiting tasks, and the lanes that run them."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import NamedTuple

from sortedcontainers import SortedDict

from openruntime_jupyter.engines.protocol import DeviceReport, JobRunner
from openruntime_jupyter.memory import Capacity
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey

LOOK_PAST = 100
"""Number of tasks checked behind a task that waits for memory."""

RECENT_DURATIONS = 20
"""Durations kept for each kind."""
KINDS_KEPT = 500
"""Kinds kept; the least recently used is dropped."""

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds without tasks of shared queues for a lane whose workers do not start; doubled after each failure."""


class Durations:
    """Recent durations of completed tasks, in seconds, by kind."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def add(self, kind: Hashable, seconds: float) -> None:
        """Add the duration of a task."""
        known = self._of.get(kind)
        if known is None:
            known = self._of[kind] = deque(maxlen=RECENT_DURATIONS)
            if len(self._of) > KINDS_KEPT:
                self._of.popitem(last=False)
        known.append(seconds)
        self._of.move_to_end(kind)

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


class Counts:
    """Numbers of tasks over all queues of a runtime: pending ones, and all that were ever added."""

    def __init__(self) -> None:
        self.pending = 0
        self.added = 0


class Queue:
    """Waiting tasks of one device preference, most urgent first, and the open lanes that serve it by id."""

    def __init__(self, name: str, counts: Counts, missing: str) -> None:
        self.name = name
        self.lanes: dict[str, Lane] = {}
        self.memory = 0
        """Memory of the largest device among its lanes, in bytes."""
        self._counts = counts
        self._missing = missing
        """Text for `waiting_for` while no lane serves the queue."""
        # A sorted list, not a heap: positions are ranks, and cancelled or moved tasks are removed at once.
        self.tasks: SortedDict[QueueKey, Entry] = SortedDict()
        """Waiting tasks in order; changed by `add`, `remove` and `clear`."""
        self._added = 0
        self._idle: OrderedDict[Lane, None] = OrderedDict()
        """Lanes with a waiting slot. The one that looked for tasks the longest ago comes first."""

    def first(self, number: int | None = None) -> list[Entry]:
        """Return the first `number` tasks, or all, in order."""
        return list(self.tasks.values()[:number])

    def rank(self, key: QueueKey) -> int:
        """Return the number of tasks that are more urgent than `key`."""
        return int(self.tasks.bisect_left(key))

    def add(self, entry: Entry) -> None:
        """Add a task at the position of its key, and wake one slot."""
        self.tasks[entry.key] = entry
        self._counts.pending += 1
        self._counts.added += 1
        self._added = self._counts.added
        self.wake_next()

    def remove(self, entry: Entry) -> bool:
        """Remove a task; return False if it is not in this queue."""
        if self.tasks.pop(entry.key, None) is None:
            return False
        self._counts.pending -= 1
        return True

    def clear(self) -> list[Entry]:
        """Remove and return all tasks."""
        entries = self.first()
        self.tasks.clear()
        self._counts.pending -= len(entries)
        return entries

    @property
    def free_slots(self) -> int:
        """Number of slots of its lanes that run no task."""
        return sum(lane.free_slots for lane in self.lanes.values())

    @property
    def waiting_for(self) -> str | None:
        """Reason why no lane can start a task of this queue now: none is open, or each waits for its device."""
        reason = None if self.lanes else self._missing
        for lane in self.lanes.values():
            if lane.waiting_for is None:
                return None
            reason = reason or lane.waiting_for
        return reason

    def served_besides(self, lane: Lane, avoided: Iterable[str] = ()) -> bool:
        """Return whether another working lane serves this queue, other than the `avoided` ones."""
        return any(other is not lane and other.working and other.id not in avoided for other in self.lanes.values())

    # Slots

    def expect(self, lane: Lane) -> None:
        """Register a lane with a waiting slot that has just looked for tasks."""
        self._idle[lane] = None
        self.seen(lane)

    def seen(self, lane: Lane) -> None:
        """Note that the lane has just looked for tasks."""
        lane.looked_at = self._counts.added
        if lane in self._idle:
            self._idle.move_to_end(lane)

    def forget(self, lane: Lane) -> None:
        """Remove a lane without waiting slots."""
        self._idle.pop(lane, None)

    def wake_next(self) -> None:
        """Wake a slot of the lane that looked for tasks the longest ago, unless all lanes have seen the present tasks."""
        while self._idle and self.tasks:
            lane = next(iter(self._idle))
            if lane.looked_at >= self._added:
                return
            self._idle.move_to_end(lane)
            if lane.wake_one():
                return


class Lane:
    """Slots of one device. They run the most urgent task of the queues that the lane serves."""

    def __init__(
        self,
        lane_id: str,
        device: DeviceReport,
        slots: int,
        aging_seconds: float,
        engine: JobRunner,
        machine: Capacity,
        durations: Durations | None = None,
        python: str | None = None,
        holder: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.id = lane_id
        self.host = lane_id.rpartition(".")[0]
        """Name of the host of the device; empty for this machine."""
        self.python = python
        """Minor version of the host's Python; None for this machine, where tasks run in their caller's."""
        self.device = device
        self.engine = engine
        self.machine = machine
        """Machine of the device, with its memory and cores."""
        self.slots = slots
        self.durations = durations or Durations()
        """Durations of tasks on such devices."""
        self.queues: dict[str, Queue] = {}
        self.running: dict[str, Entry] = {}
        self.sharing = self.running
        """Running tasks in the same memory, also those of other lanes."""
        self.open = True
        """False once the lane takes no more tasks."""
        self.holder = holder
        """Returns the other runtime that uses the device of another host, or None."""
        self.waiting_for: str | None = None
        """Why the whole lane waits: the holder of the device in another runtime."""
        self.problem: str | None = None
        """Why the last task could not be given to a worker."""
        self.looked_at = 0
        """Number of tasks ever added, when a slot last began to wait."""
        self.idle_blocked_since: float | None = None
        self._aging_seconds = aging_seconds
        self._waiting: dict[asyncio.Future[None], bool] = {}
        """Waiting slots, with True for one that has found tasks and could start none."""
        self._pause = 0.0
        self._paused_until = 0.0

    @property
    def pending(self) -> int:
        """Number of pending tasks in the queues that this lane serves."""
        return sum(len(queue.tasks) for queue in self.queues.values())

    @property
    def idle(self) -> bool:
        """True if no task waits for this lane."""
        return not any(queue.tasks for queue in self.queues.values())

    @property
    def shares_memory(self) -> bool:
        """True if the device computes in the machine's memory."""
        return self.device.type == "cpu" or "unified_memory" in self.device.capabilities

    @property
    def free_slots(self) -> int:
        """Number of slots that run no task."""
        return self.slots - len(self.running)

    @property
    def memory_total(self) -> int:
        """Memory of the device in bytes; for a device that shares it, that of the machine or container."""
        machine, own = self.machine.total, self.device.memory
        if own is None:
            return machine
        return min(own, machine) if self.shares_memory else own

    # Queues

    def serve(self, queue: Queue) -> None:
        """Take tasks from `queue` from now on."""
        self.queues[queue.name] = queue
        queue.lanes[self.id] = self
        queue.memory = max(queue.memory, self.memory_total)
        self.wake()

    def stop_serving(self, queue: Queue) -> None:
        """Take no more tasks from `queue`."""
        self.queues.pop(queue.name, None)
        queue.lanes.pop(self.id, None)
        queue.memory = max((lane.memory_total for lane in queue.lanes.values()), default=0)
        queue.forget(self)
        queue.wake_next()  # a slot of this lane may have been woken for a task
        self.wake()

    # Slots

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until a task is added for this lane. Each added task wakes one slot.

        With `seconds` there are tasks that can't start now: the wait also ends after that time and with a running task of this lane.
        """
        loop = asyncio.get_running_loop()
        slot: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, slot) if seconds is not None else None
        self._waiting[slot] = seconds is not None
        for queue in self.queues.values():
            queue.expect(self)
        try:
            await slot
        finally:
            if timer is not None:
                timer.cancel()
            if slot in self._waiting:
                del self._waiting[slot]
                self._forget_if_busy()

    def wake_one(self) -> bool:
        """Wake the slot that has waited the shortest; return False if none waits."""
        woken = False
        while self._waiting and not woken:
            slot, _ = self._waiting.popitem()
            woken = _wake(slot)
        self._forget_if_busy()
        return woken

    def wake(self, only_blocked: bool = False) -> None:
        """Wake all slots, or those that could not start the present tasks."""
        if not self._waiting:
            return
        for slot in [slot for slot, blocked in self._waiting.items() if blocked or not only_blocked]:
            del self._waiting[slot]
            _wake(slot)
        self._forget_if_busy()

    def pass_on(self) -> None:
        """Let other lanes look for the tasks that this one can't start now."""
        for queue in self.queues.values():
            queue.seen(self)
            queue.wake_next()

    def _forget_if_busy(self) -> None:
        if not self._waiting:
            for queue in self.queues.values():
                queue.forget(self)

    # Tasks

    def take(self, fits: Fits) -> Entry | None:
        """Remove and return the next task that can start now. `fits(lane, entry)` returns why a task can't, or None.

        Smaller tasks may pass a blocked one for `aging_seconds`; then one lane drains for it.
        """
        if not self.open:
            return None
        now = time.monotonic()
        for entry in self._most_urgent():
            blocked = (self._left_to_others(entry, now) if entry.avoids else None) or fits(self, entry)
            if blocked is None:
                entry.waiting_for = entry.blocked_since = entry.drained_by = None
                self.queues[entry.queue].remove(entry)
                self.idle_blocked_since = None
                self._paused_until = now + self._pause  # one task shows whether workers start again
                return entry
            entry.waiting_for = blocked.reason
            if not blocked.drains:
                continue
            if entry.blocked_since is None:
                entry.blocked_since = now
            if now - entry.blocked_since >= self._aging_seconds and self._drains_for(entry):
                return None
        return None

    def _most_urgent(self) -> Iterator[Entry]:
        queues = [queue for queue in self.queues.values() if queue.tasks]
        if self.problem is not None and not self.working:
            queues = [queue for queue in queues if not queue.served_besides(self)]
        return islice(in_order(queues), LOOK_PAST)

    def _left_to_others(self, entry: Entry, now: float) -> Blocked | None:
        """Return a reason to leave this attempt to other devices, because an earlier one failed on this device."""
        if self.id not in entry.avoids or now >= entry.avoids_until:
            return None
        if not self.queues[entry.queue].served_besides(self, entry.avoids):
            return None
        return Blocked(f"a device other than {', '.join(entry.avoids)}, where its worker died or did not start", drains=False)

    def _drains_for(self, entry: Entry) -> bool:
        """Return whether this lane starts nothing until the blocked task fits. One lane of a queue does."""
        if entry.drained_by not in self.queues[entry.queue].lanes:
            entry.drained_by = self.id
        return entry.drained_by == self.id

    def head_timed_out(self, seconds: float) -> Entry | None:
        """Return the first task if it has waited `seconds` for memory that no running task can free."""
        head = next(self._most_urgent(), None)
        if self.sharing or head is None or head.blocked_since is None:
            self.idle_blocked_since = None
            return None
        now = time.monotonic()
        if self.idle_blocked_since is None:
            self.idle_blocked_since = now
        if now - self.idle_blocked_since < seconds:
            return None
        if any(lane.running or lane.waiting_for for lane in self.queues[head.queue].lanes.values() if lane is not self):
            return None
        self.idle_blocked_since = None
        return head

    def time_left(self, entry: Entry) -> float:
        """Return the remaining seconds of a running task; infinity if unknown."""
        left = entry.time_left() or self.durations.left(entry.kind, entry.elapsed() or 0.0)
        return math.inf if left is None else left

    def typical(self, entry: Entry) -> float:
        """Return the usual seconds of a pending task; infinity if unknown."""
        typical = self.durations.typical(entry.kind)
        return math.inf if typical is None else typical

    # Failures of the device

    @property
    def working(self) -> bool:
        """False for a while after a task could not be given to a worker here, and another lane took it."""
        return self.problem is None or time.monotonic() >= self._paused_until

    def fail(self, problem: str) -> None:
        """Leave tasks to other lanes for a while, because no worker starts here."""
        self.problem = problem
        self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
        self._paused_until = time.monotonic() + self._pause

    def recover(self) -> None:
        """Take all tasks again, because a worker has started."""
        self.problem, self._pause = None, 0.0


def _wake(slot: asyncio.Future[None]) -> bool:
    if slot.done():
        return False
    slot.set_result(None)
    return True


def in_order(queues: list[Queue]) -> Iterator[Entry]:
    """Iterate over the tasks of several queues, most urgent first."""
    if len(queues) == 1:
        return iter(queues[0].tasks.values())
    return merge(*(queue.tasks.values() for queue in queues), key=key_of)


def key_of(entry: Entry) -> QueueKey:
    """Return the key of a task, for sorting."""
    return entry.key
