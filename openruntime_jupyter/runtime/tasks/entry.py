"""A task while its runtime holds it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from openruntime_jupyter.engines.protocol import ExecutionEnvironment, ModelUse, StopReason
from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.events.output import OutputBuffer
from openruntime_jupyter.runtime.events.tokens import TokenLog
from openruntime_jupyter.runtime.tasks.completion import Completion
from openruntime_jupyter.runtime.tasks.sessions import SessionEntry
from openruntime_jupyter.runtime.unchecked import construct_unchecked
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.tasks import Failure, Origin, PerformanceMetrics, Progress, Task, TaskResult, TaskState

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.queue.lane import Lane


_NO_METRICS = PerformanceMetrics()


class TaskNews(NamedTuple):
    """What an event says of a task. `data` makes the words of it, which most events are never asked for."""

    task_id: str
    status: TaskState
    execution_time: float | None
    operation: str
    name: str | None
    owner: str | None
    priority: int
    attempt: int
    device_used: str | None
    error: str | None
    cancel_stage: str | None
    changed: float

    def data(self) -> dict[str, Any]:
        """As a message's `data`."""
        said = self._asdict()
        said["status"] = self.status.value
        said["timestamp"] = timestamp(said.pop("changed"))
        return said


NEWS = (*TaskNews._fields[:-1], "timestamp")
"""What an event says of a task, by the names of a record's fields."""


class QueueKey(NamedTuple):
    """Where a task stands: the smallest is next. Constant while it waits, so that aging needs no reordering."""

    urgency: float
    sequence: int

    @classmethod
    def of(cls, submitted: float, priority: int, aging_seconds: float, sequence: int) -> QueueKey:
        """`submitted` and `aging_seconds` in seconds: each step of priority is worth `aging_seconds` of waiting."""
        return cls(submitted - priority * aging_seconds, sequence)


@dataclass(slots=True, eq=False)
class Entry:
    """Everything known of one task.

    `given` are its parameters, `parameters` the same as JSON, for as long as it may still run. Wall-clock times are for people,
    monotonic ones for reckoning; both in seconds.
    """

    task_id: str
    operation: str
    parameters: bytes
    given: dict[str, Any]
    lane: Lane
    key: QueueKey
    priority: int
    owner: str | None
    origin: Origin
    wait: bool
    runtime: str
    output: OutputBuffer
    submitted_mono: float
    name: str | None = None
    device_preference: str = "auto"
    timeout: float | None = None
    retries: int = 0
    memory_limit: int | None = None
    needs: int | None = None
    interpreter: str | None = None
    environment: ExecutionEnvironment = field(default_factory=ExecutionEnvironment)
    private: bool = False
    """Whether it needs a worker process that no other task has used."""
    burst: str | None = None
    """The burst of calls whose processes it may use."""
    arrays: tuple[str, ...] = ()
    """Ids of those that the parameters name."""
    model: ModelUse | None = None
    session: SessionEntry | None = None
    session_number: int = 0
    """The session's number when the task was submitted."""
    worker: str | None = None
    """Who has it, or had it last."""
    tokens: TokenLog | None = None
    """What a model has written so far, where one answers it."""
    submitted: float = field(default_factory=time.time)
    state: TaskState = TaskState.PENDING
    changed: float = 0.0
    started: float | None = None
    started_mono: float | None = None
    finished: float | None = None
    attempt: int = 0
    execution_time: float | None = None
    progress: Progress | None = None
    waiting_for: str | None = None
    blocked_since: float | None = None
    stop_reason: StopReason | None = None
    cancel_stage: str | None = None
    device_used: str | None = None
    result: TaskResult | None = None
    failure: Failure | None = None
    metrics: PerformanceMetrics = field(default_factory=lambda: _NO_METRICS)
    done: Completion = field(default_factory=Completion)
    news: asyncio.Event | None = None
    """Set at the next output, and at the end; only there while somebody waits for it."""
    told: int = 0
    _last: Task | None = None

    def transition(self, state: TaskState) -> None:
        """Change state; raises `TaskConflict` if the table forbids it."""
        self.state = follow(self.state, state)
        self.changed = time.time()

    def elapsed(self) -> float | None:
        """Seconds that it ran, or has run so far; None before."""
        if self.execution_time is not None:
            return self.execution_time
        if self.state is TaskState.RUNNING and self.started_mono is not None:
            return time.monotonic() - self.started_mono
        return None

    @property
    def over(self) -> bool:
        """Whether it is at its end, and that is recorded: until then nobody is told."""
        return self.state.terminal and self.done.reached

    def tell(self) -> None:
        """Wake those who wait for news."""
        if self.news is not None:
            self.news.set()
            self.news = None

    def lasting(self) -> Task:
        """This task as it is now, for the history: without what only makes sense while it waits."""
        return self.record() if self.state.terminal else self.snapshot(live=False)

    def record(self, parameters: bool = True) -> Task:
        """This task as it is now; at its end always the same one, made once."""
        if not self.state.terminal:
            return self.snapshot(parameters)
        if self._last is None:
            self._last = self.snapshot(live=False)
        return self._last if parameters else construct_unchecked(Task, {**self._last.__dict__, "parameters": None})

    def snapshot(self, parameters: bool = True, live: bool = True) -> Task:
        """This task's record now; `live` adds what is true of this moment alone: position, estimate, how long it has run so far."""
        pending = live and self.state is TaskState.PENDING
        now = {
            "task_id": self.task_id,
            "status": self.state,
            "operation": self.operation,
            "name": self.name,
            "owner": self.owner,
            "origin": self.origin,
            "priority": self.priority,
            "device_preference": self.device_preference,
            "device_used": self.device_used,
            "session": self.session.id if self.session is not None else None,
            "session_name": self.session.name if self.session is not None else None,
            "timeout": self.timeout,
            "retries": self.retries,
            "attempt": self.attempt,
            "wait": self.wait,
            "memory_limit": self.memory_limit,
            "timestamp": timestamp(self.changed or self.submitted),
            "submitted_at": timestamp(self.submitted),
            "started_at": iso(self.started),
            "finished_at": iso(self.finished),
            "execution_time": self.elapsed() if live or self.state.terminal else None,
            "position": self.lane.position(self) if pending else None,
            "estimated_start": iso(self.lane.estimate(self)) if pending else None,
            "waiting_for": (self.waiting_for or self.lane.waiting_for) if pending else None,
            "progress": self.progress,
            "cancel_stage": self.cancel_stage,
            "result": self.result,
            "error": self.failure.message if self.failure is not None else None,
            "failure": self.failure,
            "performance_metrics": self.metrics,
            "runtime": self.runtime,
            "here": True,
            "parameters": self.given if parameters else None,
        }
        return construct_unchecked(Task, now)

    def news_item(self) -> TaskNews:
        """What an event says of it now."""
        return TaskNews(
            self.task_id,
            self.state,
            self.elapsed(),
            self.operation,
            self.name,
            self.owner,
            self.priority,
            self.attempt,
            self.device_used,
            self.failure.message if self.failure is not None else None,
            self.cancel_stage,
            self.changed or self.submitted,
        )


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
