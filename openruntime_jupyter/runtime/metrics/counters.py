"""Task counters, at about a microsecond per change: since the start for Prometheus, and by second for the metrics history."""

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
"""Upper bounds of the histogram buckets in seconds; the last bucket has none."""

PROMPT = "ai_task_"
"""Prefix of the ids of prompts."""

DEATHS = (FailureKind.WORKER_DIED, FailureKind.MEMORY)

Clock = Callable[[], float]


class Histogram:
    """Number of values in each bucket of `BOUNDS` and above, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add a value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value


class Levels:
    """Exact numbers of running and pending tasks over time; tasks that run between two samples count with their duration.

    Changes within one second of the wall clock are combined before they are added to the ledger.
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
        """Set the numbers of running and pending tasks."""
        now = self._monotonic()
        if now >= self._until:
            self._roll(now)
        self._hold(now)
        self._active, self._pending = active, pending

    def settle(self) -> None:
        """Add everything until now to the ledger."""
        now = self._monotonic()
        if now >= self._until:
            self._roll(now)
        else:
            self._close(now)
            self._open(now)

    def _hold(self, now: float) -> None:
        """Add the unchanged levels since the last call."""
        seconds, self._since = now - self._since, now
        if seconds > 0:
            self._ran.add(self._active, seconds)
            self._waited.add(self._pending, seconds)

    def _roll(self, now: float) -> None:
        """Close the past second, add the unchanged levels up to now, and open the current one."""
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
    """Task counters of one runtime since its start. `longest` is the maximum time in seconds that a value is assumed to last."""

    def __init__(self, longest: float, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        """Number of finished tasks by state and operation."""
        self.answered = 0
        """Number of completed prompts."""
        self.deaths = 0
        """Number of tasks that ended because their worker died."""
        self.queued = Histogram()
        """Seconds from submission to the first start."""
        self.ran = Histogram()
        """Seconds from the last start to the end."""
        self.began = wall()
        """Start of the counters in seconds since the epoch."""
        self.ledger = Ledger(longest)
        self._levels = Levels(self.ledger, monotonic, wall)
        self._running: set[str] = set()
        self._waiting: set[str] = set()
        self._wall = wall

    def changed(self, changes: Iterable[tuple[Entry, TaskState]]) -> None:
        """Count these state changes, in order; repeated states have no effect."""
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
        """Remove a task that another runtime has taken over."""
        self._running.discard(task_id)
        self._waiting.discard(task_id)
        self._levels.change(len(self._running), len(self._waiting))

    def settle(self) -> None:
        """Add everything until now to the ledger."""
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
