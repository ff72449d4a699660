from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openruntime_jupyter.runtime.metrics.counters import BOUNDS, ENDED_AS, Counters, Histogram, Spread
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, PerformanceMetrics, TaskState

NOW = 1_800_000_000.0


class Clocks:
    """Manual monotonic and wall clocks."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = NOW

    def go(self, seconds: float, jump: float = 0.0) -> None:
        """Advance both clocks, and set the wall clock by `jump`."""
        self.monotonic += seconds
        self.wall += seconds + jump


def counters(clocks: Clocks) -> Counters:
    return Counters(1000.0, lambda: clocks.monotonic, lambda: clocks.wall)


def entry(task_id: str, state: TaskState = TaskState.PENDING, **fields: Any) -> Any:
    """Return the part of an entry that counters use."""
    given = {"attempt": 0, "submitted_mono": 0.0, "started_mono": None, "execution_time": None, "failure": None, "operation": "call"}
    return SimpleNamespace(task_id=task_id, state=state, metrics=PerformanceMetrics(), **{**given, **fields})


def change(counting: Counters, task: Any) -> None:
    """Count the entry in its current state."""
    counting.changed([(task, task.state)])


EIGHTHS = st.integers(0, 8 * 5).map(lambda number: number / 8)
MOVES = st.lists(
    st.tuples(EIGHTHS, st.integers(0, 4), st.sampled_from([TaskState.PENDING, TaskState.RUNNING, TaskState.COMPLETED])),
    min_size=1,
    max_size=25,
)


@given(MOVES)
@settings(deadline=None)
def test_levels_are_exact_for_every_second(moves: list[tuple[float, int, TaskState]]) -> None:
    clocks = Clocks()
    counting = counters(clocks)
    states: dict[int, TaskState] = {}
    held: list[tuple[float, float, int, int]] = []
    for seconds, task, state in [*moves, (3.0, 99, TaskState.COMPLETED)]:
        running, pending = (list(states.values()).count(each) for each in (TaskState.RUNNING, TaskState.PENDING))
        held.append((clocks.wall, clocks.wall + seconds, running, pending))
        clocks.go(seconds)
        states[task] = state
        change(counting, entry(f"task_{task}", state))
    counting.settle()
    found = {start: bucket for (tier, start), bucket in counting.ledger.take().items() if tier == 1}
    for column, name in ((2, "active_tasks"), (3, "pending_tasks")):
        for second in range(int(NOW), math.ceil(clocks.wall)):
            parts = [(each[column], min(each[1], second + 1) - max(each[0], second)) for each in held]
            parts = [(value, weight) for value, weight in parts if weight > 0]
            spread = found[second].spreads[name]
            assert spread.total == pytest.approx(sum(value * weight for value, weight in parts))
            assert spread.weight == pytest.approx(sum(weight for _, weight in parts))
            assert (spread.low, spread.high) == (min(value for value, _ in parts), max(value for value, _ in parts))


def test_changed_wall_clock_loses_no_run_time() -> None:
    for jump in (-3600.0, -0.5, 0.5, 3600.0):
        clocks = Clocks()
        counting = counters(clocks)
        change(counting, entry("task_1", TaskState.RUNNING))
        clocks.go(5.0, jump)
        counting.settle()
        clocks.go(5.0)
        change(counting, entry("task_1", TaskState.COMPLETED))
        counting.settle()
        buckets = counting.ledger.take()
        for tier in (1, 10, 60, 300):
            mine = [each.spreads.get("active_tasks", Spread()) for (seconds, _), each in buckets.items() if seconds == tier]
            assert sum(each.total for each in mine) == pytest.approx(10.0)
            assert sum(each.weight for each in mine) == pytest.approx(10.0)


def test_finished_tasks_are_counted_once_by_state_and_operation() -> None:
    counting = counters(Clocks())
    for number, state in enumerate(state for state in TaskState if state.terminal):
        for operation in ("call", "python"):
            change(counting, entry(f"task_{number}_{operation}", state, operation=operation))
    assert set(counting.ended) == {(state, operation) for state in ENDED_AS for operation in ("call", "python")}
    assert set(counting.ended.values()) == {1}
    (bucket,) = (bucket for (tier, _), bucket in counting.ledger.take().items() if tier == 1)
    assert {name: spread.total for name, spread in bucket.spreads.items()} == dict.fromkeys(ENDED_AS.values(), 2.0)


def test_queue_time_and_run_time_of_retried_task() -> None:
    clocks = Clocks()
    counting = counters(clocks)
    task = entry("task_1", submitted_mono=100.0)
    change(counting, task)
    task.state, task.attempt, task.started_mono = TaskState.RUNNING, 1, 102.5
    change(counting, task)
    change(counting, task)  # repeated, as after a change of priority
    task.state = TaskState.PENDING
    change(counting, task)  # its worker died
    assert (counting._running, counting._waiting) == (set(), {"task_1"})
    task.state, task.attempt, task.started_mono = TaskState.RUNNING, 2, 110.0
    change(counting, task)
    task.state, task.execution_time, task.metrics = TaskState.COMPLETED, 3.5, PerformanceMetrics(memory_used_mb=2.0)
    change(counting, task)
    assert (counting.queued.total, sum(counting.queued.counts)) == (2.5, 1)
    assert (counting.ran.total, sum(counting.ran.counts)) == (3.5, 1)
    (bucket,) = (bucket for (tier, _), bucket in counting.ledger.take().items() if tier == 1)
    totals = {
        name: (spread.total, spread.weight) for name, spread in bucket.spreads.items() if name not in ("active_tasks", "pending_tasks")
    }
    assert totals == {"queue_time": (2.5, 1), "run_time": (3.5, 1), "mlx_memory": (2e6, 1), "completed_tasks": (1, 1)}


def test_task_that_never_started_has_no_queue_time() -> None:
    counting = counters(Clocks())
    change(counting, entry("task_1"))
    change(counting, entry("task_1", TaskState.CANCELLED))
    assert (sum(counting.queued.counts), sum(counting.ran.counts)) == (0, 0)
    assert counting.ended == {("cancelled", "call"): 1}


def test_task_taken_over_by_another_runtime_is_not_counted() -> None:
    counting = counters(Clocks())
    change(counting, entry("task_1"))
    counting.lost("task_1")
    counting.lost("task_never_seen")
    assert (counting._running, counting._waiting, counting.ended) == (set(), set(), {})


def test_worker_deaths_are_counted() -> None:
    counting = counters(Clocks())
    for number, kind in enumerate(FailureKind):
        failure = Failure(kind=kind, message="it ended")
        change(counting, entry(f"task_{number}", TaskState.FAILED, failure=failure))
    assert counting.deaths == 2, "died, and stopped for its memory"


@given(st.lists(st.one_of(st.floats(0, 1e5), st.sampled_from(BOUNDS)), max_size=50))
def test_histogram_bound_belongs_to_lower_bucket(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    expected = [0] * (len(BOUNDS) + 1)
    for value in values:
        expected[sum(bound < value for bound in BOUNDS)] += 1
    assert histogram.counts == expected
    assert histogram.total == pytest.approx(sum(values))
