"""A device's queue and its slots."""

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
"""Tasks whose durations the estimates rest on."""

LOOK_PAST = 100
"""Tasks that are looked at behind one that waits for memory."""


class Blocked(NamedTuple):
    """Why a task may not start now, in words, and whether the lane drains for it once it has waited too long."""

    reason: str
    drains: bool = True


Fits = Callable[[Entry], "Blocked | None"]


class Lane:
    """Waiting and running tasks of one device, and what runs them.

    `changed` is set whenever a slot whose task waits for memory may find something new to do.
    """

    def __init__(self, lane_id: str, device: DeviceReport, slots: int, aging_seconds: float, engine: Runs) -> None:
        self.id = lane_id
        self.device = device
        self.engine = engine
        self.slots = slots
        self.running: dict[str, Entry] = {}
        self.waiting_for: str | None = None
        """What keeps the whole lane: the holder of the device in another runtime."""
        self.changed = asyncio.Event()
        self.idle_blocked_since: float | None = None
        self._aging_seconds = aging_seconds
        # Sorted rather than a heap: a position is a rank, and a cancelled or moved task leaves at once.
        self._pending: SortedDict[QueueKey, Entry] = SortedDict()
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._idle: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def pending(self) -> list[Entry]:
        """The waiting tasks, next first."""
        return list(self._pending.values())

    def first(self, number: int) -> list[Entry]:
        """The first `number` of them."""
        return list(self._pending.values()[:number])

    def add(self, entry: Entry) -> None:
        """Queue it where its key says."""
        self._pending[entry.key] = entry
        self.changed.set()
        while self._idle:
            slot = self._idle.pop()
            if not slot.done():
                slot.set_result(None)
                return

    async def wait_for_task(self) -> None:
        """Until one is added, for a slot that finds none: each wakes one slot, since many would wake for nothing."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(slot)
        await slot

    def wake(self) -> None:
        """Let every slot look again."""
        self.changed.set()
        idle, self._idle = self._idle, []
        for slot in idle:
            if not slot.done():
                slot.set_result(None)

    def remove(self, entry: Entry) -> bool:
        """Take a waiting task out; False if it does not wait here."""
        return self._pending.pop(entry.key, None) is not None

    def move(self, entry: Entry, priority: int) -> None:
        """Give a waiting task another priority; its submission time stays."""
        self.remove(entry)
        entry.priority = priority
        entry.key = QueueKey.of(entry.submitted_mono, priority, self._aging_seconds, entry.key.sequence)
        self.add(entry)

    def take(self, fits: Fits) -> Entry | None:
        """The next task that may start now. `fits(entry)` says why one may not, or None.

        Smaller tasks pass a blocked one for `aging_seconds`; from then on the lane drains for it.
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

    def stuck(self, seconds: float) -> Entry | None:
        """The task at the head, if it has kept this lane idle for that long."""
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
        """1 for the next; None if it does not wait here."""
        return self._pending.bisect_left(entry.key) + 1 if entry.key in self._pending else None

    def ran(self, seconds: float) -> None:
        """A task ran that long: the estimates rest on it."""
        self._durations.append(seconds)

    def estimate(self, entry: Entry) -> float | None:
        """When it will probably start, in seconds since the epoch.

        None where nothing has run yet, and where all slots are held by tasks of which nothing tells how long they will go on.
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
    """Seconds that a running task will probably go on: as it says itself, else by those that ran longer than it has so far."""
    if entry.progress is not None and entry.progress.remaining is not None:
        return entry.progress.remaining
    elapsed = entry.elapsed() or 0.0
    longer = bisect_right(known, elapsed)
    return None if longer == len(known) else known[(longer + len(known)) // 2] - elapsed


def _level(ends: list[float], ahead: float) -> float:
    """When `ahead` seconds of work are done by slots that are free from `ends` on, in order: as water fills uneven ground."""
    level = filled = 0.0
    for number, end in enumerate(ends, 1):
        if number > 1 and end >= level:
            break
        filled += end
        level = (ahead + filled) / number
    return level
