"""Metrics of one runtime as they are measured: definitions, buckets of increasing length, and task counters.

A change costs about a microsecond. Buckets start at whole seconds since the epoch by the wall clock, so daylight saving has no effect.
Durations come from a monotonic clock. If the wall clock is set back, two time ranges share buckets and each keeps its weight; if it is
set forward, a gap is left. In both cases every measurement counts exactly once.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from openruntime_jupyter.runtime.tasks.entry import Entry
from openruntime_jupyter.schemas.tasks import FailureKind, TaskState


class Aggregation(str, Enum):
    """Aggregation of a metric's values within a time range."""

    MACHINE = "machine"
    """State of the machine: all runtimes measure the same value, so values are not added."""
    LEVEL = "level"
    """State of one runtime: values of several runtimes are added."""
    TASK = "task"
    """One value per task, at its start or end."""
    COUNT = "count"
    """Number of tasks."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Definition of one recorded metric."""

    name: str
    unit: Literal["percent", "bytes", "tasks", "seconds"]
    kind: Aggregation
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("gpu_utilization", "percent", Aggregation.MACHINE, "Mean GPU utilization; 0 without a GPU."),
    Metric("gpu_memory", "bytes", Aggregation.MACHINE, "Used memory of all GPUs, if it can be read."),
    Metric("memory_usage", "percent", Aggregation.MACHINE, "Used memory of the machine or the container."),
    Metric("cpu_utilization", "percent", Aggregation.MACHINE, "Utilization of all cores."),
    Metric("active_tasks", "tasks", Aggregation.LEVEL, "Running tasks."),
    Metric("pending_tasks", "tasks", Aggregation.LEVEL, "Pending tasks."),
    Metric("worker_memory", "bytes", Aggregation.LEVEL, "Resident memory of all workers."),
    Metric("queue_time", "seconds", Aggregation.TASK, "Time from submission to the first start."),
    Metric("run_time", "seconds", Aggregation.TASK, "Time from the last start to the end."),
    Metric("mlx_memory", "bytes", Aggregation.TASK, "Peak of MLX's own allocations in a task."),
    Metric("completed_tasks", "tasks", Aggregation.COUNT, "Number of completed tasks."),
    Metric("failed_tasks", "tasks", Aggregation.COUNT, "Number of failed tasks."),
    Metric("cancelled_tasks", "tasks", Aggregation.COUNT, "Number of cancelled tasks."),
    Metric("timed_out_tasks", "tasks", Aggregation.COUNT, "Number of tasks that timed out."),
    Metric("interrupted_tasks", "tasks", Aggregation.COUNT, "Number of interrupted tasks, except those of a runtime that was killed."),
)

ENDED_AS = {state: f"{state}_tasks" for state in TaskState if state.terminal}
"""Name of the metric that counts the tasks that ended in a state."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Tier of buckets that are `seconds` long and kept for `keep` seconds."""

    seconds: int
    keep: int

    @property
    def most(self) -> int:
        """Maximum number of kept buckets: one minute more than `keep`, so that a query over all of `keep` finds every bucket."""
        return self.keep // self.seconds + max(1, 60 // self.seconds)


TIERS = (Tier(1, 900), Tier(10, 6 * 3600), Tier(60, 24 * 3600), Tier(300, 7 * 24 * 3600))
"""Finest first; each bucket of a tier consists of whole buckets of the tier before."""


@dataclass(slots=True)
class Spread:
    """Minimum, maximum and weighted total of values; the weight is a duration in seconds, or 1 for values without a duration."""

    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Add a value."""
        # Not min() and max(), which cost three times as much: this runs several times per task.
        if value < self.low:  # noqa: PLR1730
            self.low = value
        if value > self.high:  # noqa: PLR1730
            self.high = value
        self.total += value * weight
        self.weight += weight

    def merge(self, other: Spread) -> None:
        """Add the values of `other`."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total
        self.weight += other.weight


@dataclass(slots=True)
class Bucket:
    """Values of one bucket by metric name, with the first and the last measured moment."""

    began: float = math.inf
    ended: float = -math.inf
    spreads: defaultdict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))

    def widen(self, began: float, ended: float) -> None:
        """Extend the measured range."""
        self.began = min(self.began, began)
        self.ended = max(self.ended, ended)

    def merge(self, other: Bucket) -> None:
        """Add the values and the measured range of `other`."""
        self.widen(other.began, other.ended)
        for name, spread in other.spreads.items():
            self.spreads[name].merge(spread)


class Buckets(defaultdict[tuple[int, int], Bucket]):
    """Buckets by (seconds of their tier, start in seconds since the epoch), created when they are first used."""

    def __init__(self) -> None:
        super().__init__(Bucket)


class Ledger:
    """Measurements since the last `take`, by second of the wall clock.

    A value is assumed to last at most `longest` seconds. A longer time without measurements is a gap.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._seconds: defaultdict[int, Bucket] = defaultdict(Bucket)

    def add_interval(self, values: Mapping[str, float], end: float, seconds: float) -> None:
        """Add values that lasted for `seconds` until `end`, in seconds since the epoch."""
        begin = end - min(seconds, self._longest)
        for second in range(math.floor(begin), math.ceil(end)):
            first, last = max(begin, second), min(end, second + 1)
            if last <= first:
                continue
            bucket = self._seconds[second]
            bucket.widen(first, last)
            for name, value in values.items():
                bucket.spreads[name].add(value, last - first)

    def add_spreads(self, spreads: Mapping[str, Spread], second: int, began: float, ended: float) -> None:
        """Add spreads measured within one second, from `began` to `ended`."""
        bucket = self._seconds[second]
        bucket.widen(began, ended)
        for name, spread in spreads.items():
            bucket.spreads[name].merge(spread)

    def add_event(self, values: Mapping[str, float], at: float) -> None:
        """Add single values measured at the time `at`, in seconds since the epoch."""
        bucket = self._seconds[int(at)]
        if bucket.ended < bucket.began:  # a new one
            bucket.widen(at, at)
        for name, value in values.items():
            bucket.spreads[name].add(value)

    def take(self) -> Buckets:
        """Return the measurements in buckets of every tier, to be added to earlier ones, and clear them here."""
        seconds, self._seconds = self._seconds, defaultdict(Bucket)
        folded = Buckets()
        for second, bucket in seconds.items():
            for tier in TIERS:
                folded[tier.seconds, second - second % tier.seconds].merge(bucket)
        return folded


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
            self._ledger.add_interval({"active_tasks": self._active, "pending_tasks": self._pending}, self._wall(), left)
        self._open(now)

    def _close(self, until: float) -> None:
        self._hold(until)
        if self._ran.weight:
            self._ledger.add_spreads(
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
            self.ledger.add_event({"queue_time": waited}, self._wall())

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
        self.ledger.add_event(happened, self._wall())
