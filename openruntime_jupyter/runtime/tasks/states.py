"""Which state may follow which: the only place that says so. No I/O here."""

from __future__ import annotations

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.models import TaskState

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.RUNNING, TaskState.CANCELLED, TaskState.FAILED, TaskState.INTERRUPTED}),
    # Back to pending: its worker died and it has retries left.
    TaskState.RUNNING: frozenset(
        {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMED_OUT, TaskState.INTERRUPTED, TaskState.PENDING}
    ),
    TaskState.COMPLETED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
    TaskState.TIMED_OUT: frozenset(),
    TaskState.INTERRUPTED: frozenset(),
}


def follow(state: TaskState, following: TaskState) -> TaskState:
    """`following`, if it may follow `state`; raises `TaskConflict` otherwise."""
    if following not in TRANSITIONS[state]:
        raise TaskConflict(f"a task that is {state} can't become {following}")
    return following
