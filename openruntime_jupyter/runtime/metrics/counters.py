"""Counts what becomes of tasks, at about a microsecond a change: for Prometheus since the start, for the metrics' history by second."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable

from openruntime_jupyter.runtime.metrics.definitions import ENDED_AS
from openruntime_jupyter.runtime.metrics.rollup import Ledger, Spread
from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.schemas.tasks import FailureKind, TaskState

BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Seconds: the upper ends of the histograms' buckets but for the last, which has none."""

PROMPT = "ai_task_"
"""How the ids of tasks begin that a model answers."""

DEATHS = (FailureKind.WORKER_DIED, FailureKind.MEMORY)

Clock = Callable[[], float]


class Histogram:
    """How many values fell into each of `BOUNDS` and beyond, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value


class Levels:
    """How many tasks run and wait, exactly: short ones between two samples count for as long as they took.

    Changes within one second of the wall clock are put together before the ledger gets them.
    """

    def __init__(self, ledger: Ledger, monotonic: Clock, wall: Clock) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._wall = wall
        self._active = 0
        self._pending = 0
        self._ran, self._waited = Spread(), Spread()
        self._began = self._until = self._since = 0.0
        self._second = 0
        self._open(monotonic())

    def change(self, active: int, pending: int) -> None:
        """From now on it is so many."""
        now = self._monotonic()
        if now >= self._until:
            self._roll(now)
        self._hold(now)
        self._active, self._pending = active, pending

    def settle(self) -> None:
        """Give the ledger all until now."""
        now = self._monotonic()
        if now >= self._until:
            self._roll(now)
        else:
            self._close(now)
            self._open(now)

    def _hold(self, now: float) -> None:
        """Nothing has changed since the last time."""
        seconds, self._since = now - self._since, now
        if seconds > 0:
            self._ran.add(self._active, seconds)
            self._waited.add(self._pending, seconds)

    def _roll(self, now: float) -> None:
        """The second is over; nothing has changed since some moment within it."""
        left = now - self._until
        self._close(self._until)
        if left > 0:
            self._ledger.lasted({"active_tasks": self._active, "pending_tasks": self._pending}, self._wall(), left)
        self._open(now)

    def _close(self, until: float) -> None:
        self._hold(until)
        if self._ran.weight:
            self._ledger.varied(
                {"active_tasks": self._ran, "pending_tasks": self._waited}, self._second, self._began, self._began + self._ran.weight
            )

    def _open(self, now: float) -> None:
        self._began = self._wall()
        self._second = math.floor(self._began)
        self._since = now
        self._until = now + self._second + 1 - self._began
        self._ran, self._waited = Spread(), Spread()


class Counters:
    """Of one runtime since its start. `longest` is how many seconds a figure is taken to stay as it was last seen."""

    def __init__(self, longest: float, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        """How many tasks have ended, by state and operation."""
        self.answered = 0
        """How many prompts a model has answered."""
        self.deaths = 0
        """How many tasks ended because their worker did."""
        self.queued = Histogram()
        """Seconds from submission to the first start."""
        self.ran = Histogram()
        """Seconds from the last start to the end."""
        self.began = wall()
        """When that was, in seconds since the epoch."""
        self.ledger = Ledger(longest)
        self._levels = Levels(self.ledger, monotonic, wall)
        self._running: set[str] = set()
        self._waiting: set[str] = set()
        self._wall = wall

    def changed(self, changes: Iterable[tuple[Entry, TaskState]]) -> None:
        """These tasks have come into these states by now, one after the other, or were in them already."""
        for entry, state in changes:
            self._changed(entry, state)
        self._levels.change(len(self._running), len(self._waiting))

    def _changed(self, entry: Entry, state: TaskState) -> None:
        task_id = entry.task_id
        if state is TaskState.RUNNING:
            self._waiting.discard(task_id)
            if task_id not in self._running:
                self._running.add(task_id)
                self._started(entry)
        elif state is TaskState.PENDING:
            self._running.discard(task_id)
            self._waiting.add(task_id)
        else:
            self._running.discard(task_id)
            self._waiting.discard(task_id)
            self._ended(entry, state)

    def lost(self, task_id: str) -> None:
        """The task is another runtime's now."""
        self._running.discard(task_id)
        self._waiting.discard(task_id)
        self._levels.change(len(self._running), len(self._waiting))

    def settle(self) -> None:
        """Give the ledger all until now."""
        self._levels.settle()

    def _started(self, entry: Entry) -> None:
        if entry.attempt == 1 and entry.started_mono is not None:
            waited = max(0.0, entry.started_mono - entry.submitted_mono)
            self.queued.observe(waited)
            self.ledger.happened({"queue_time": waited}, self._wall())

    def _ended(self, entry: Entry, state: TaskState) -> None:
        self.ended[state.value, entry.operation] += 1
        happened = {ENDED_AS[state]: 1.0}
        if state is TaskState.COMPLETED and entry.task_id.startswith(PROMPT):
            self.answered += 1
        if entry.failure is not None and entry.failure.kind in DEATHS:
            self.deaths += 1
        if entry.execution_time is not None:
            self.ran.observe(entry.execution_time)
            happened["run_time"] = entry.execution_time
            if entry.metrics.memory_used_mb is not None:
                happened["mlx_memory"] = entry.metrics.memory_used_mb * 1e6
        self.ledger.happened(happened, self._wall())
