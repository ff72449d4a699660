"""Queue and slots of one device."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from sortedcontainers import SortedDict

from openruntime_jupyter.engines.protocol import DeviceReport, Runs
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey

RECENT = 50
"""Number of recent durations that estimates use."""

LOOK_PAST = 100
"""Number of tasks checked behind a task that waits for memory."""


class Blocked(NamedTuple):
    """Reason why a task can't start now, and whether the lane drains for it after a long wait."""

    reason: str
    drains: bool = True


Fits = Callable[[Entry], "Blocked | None"]


class Lane:
    """Pending and running tasks of one device.

    `changed` is set whenever a slot whose task waits for memory may find something new to do.
    """

    def __init__(self, lane_id: str, device: DeviceReport, slots: int, aging_seconds: float, engine: Runs) -> None:
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
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def pending(self) -> list[Entry]:
        """Return the pending tasks in queue order."""
        return list(self._pending.values())

    def first(self, number: int) -> list[Entry]:
        """Return the first `number` pending tasks."""
        return list(self._pending.values()[:number])

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
        """Remove and return the next task that can start now. `fits(entry)` returns why a task can't, or None.

        Smaller tasks may pass a blocked one for `aging_seconds`; then the lane drains for it.
        """
        now = time.monotonic()
        for index in range(min(len(self._pending), LOOK_PAST)):
            entry: Entry = self._pending.peekitem(index)[1]
            blocked = fits(entry)
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

    def add_duration(self, seconds: float) -> None:
        """Add the duration of a task, in seconds, to the estimates."""
        self._durations.append(seconds)

    def estimate(self, entry: Entry) -> float | None:
        """Return the estimated start, in seconds since the epoch.

        None if no task has run yet, or if the durations of all running tasks are unknown.
        """
        position = self.position(entry)
        if position is None or not self._durations:
            return None
        known = sorted(self._durations)
        ends = [0.0] * (self.slots - len(self.running))
        ends += [left for other in self.running.values() if (left := _left(other, known)) is not None]
        ahead = (position - 1) * known[len(known) // 2]
        return None if not ends else time.time() + _level(sorted(ends), ahead)


def _left(entry: Entry, known: list[float]) -> float | None:
    """Estimate the remaining seconds of a running task: from its progress, else from durations longer than its own so far."""
    if entry.progress is not None and entry.progress.remaining is not None:
        return entry.progress.remaining
    elapsed = entry.elapsed() or 0.0
    longer = bisect_right(known, elapsed)
    return None if longer == len(known) else known[(longer + len(known)) // 2] - elapsed


def _level(ends: list[float], ahead: float) -> float:
    """Return the time at which slots that become free at `ends` have done `ahead` seconds of work."""
    level = filled = 0.0
    for number, end in enumerate(ends, 1):
        if number > 1 and end >= level:
            break
        filled += end
        level = (ahead + filled) / number
    return level
