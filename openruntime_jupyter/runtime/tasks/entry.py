"""A task of this runtime, its states, and its queue key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from openruntime_jupyter.engines.protocol import ExecutionEnvironment, ModelUse, StopReason
from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.events.output import OutputBuffer, TokenLog
from openruntime_jupyter.runtime.tasks.sessions import SessionEntry
from openruntime_jupyter.schemas.base import construct_unchecked, iso, timestamp
from openruntime_jupyter.schemas.tasks import Failure, Origin, PerformanceMetrics, Progress, Task, TaskResult, TaskState

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.queue.lane import Lane


_NO_METRICS = PerformanceMetrics()


class Completion:
    """One-shot event. Waiters resume in the same loop iteration and may be cancelled before that."""

    __slots__ = ("_callbacks", "reached")

    def __init__(self) -> None:
        self.reached = False
        self._callbacks: list[Callable[[], None]] | None = None  # most tasks have none

    def reach(self) -> None:
        """Set the event and call the callbacks. Further calls have no effect."""
        self.reached = True
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def call(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, once the event is set; at once if it is set already."""
        if self.reached:
            callback()
            return
        self._callbacks = self._callbacks or []
        self._callbacks.append(callback)

    def uncall(self, callback: Callable[[], None]) -> None:
        """Undo `call`. Has no effect once the event is set."""
        if not self.reached and self._callbacks is not None:
            self._callbacks.remove(callback)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the event is set, or for `timeout` seconds."""
        if not self.reached:
            await wait_for_some([self], 1, timeout)


async def wait_for_some(events: list[Completion], number: int, timeout: float | None = None) -> None:
    """Wait until `number` of `events` are set, or for `timeout` seconds. One future serves all of them."""
    pending = [event for event in events if not event.reached]
    left = min(number, len(events)) - (len(events) - len(pending))
    if left <= 0:
        return
    loop = asyncio.get_running_loop()
    enough: asyncio.Future[None] = loop.create_future()

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _wake(enough)

    for event in pending:
        event.call(count)
    timer = None if timeout is None else loop.call_later(timeout, partial(_wake, enough))
    try:
        await enough
    finally:
        if timer is not None:
            timer.cancel()
        for event in pending:
            event.uncall(count)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class TaskNews(NamedTuple):
    """Content of a task event. `data` is built only if a subscriber wants it."""

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
        """Return the `data` of a message."""
        said = self._asdict()
        said["status"] = self.status.value
        said["timestamp"] = timestamp(said.pop("changed"))
        return said


NEWS = (*TaskNews._fields[:-1], "timestamp")
"""Fields of a record that an event has."""


class QueueKey(NamedTuple):
    """Sort key in the queue, smallest first. Constant while the task is pending, so that aging needs no reordering."""

    urgency: float
    sequence: int

    @classmethod
    def of(cls, submitted: float, priority: int, aging_seconds: float, sequence: int) -> QueueKey:
        """Return the key; `submitted` and `aging_seconds` are in seconds. Each step of priority equals `aging_seconds` of waiting."""
        return cls(submitted - priority * aging_seconds, sequence)


@dataclass(slots=True, eq=False)
class Entry:
    """State of one task.

    `given` holds the parameters, and `parameters` their JSON until the end. Times are in seconds: wall-clock times for display, monotonic
    ones for arithmetic.
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
    """True if the task needs a worker process that has run no other task."""
    burst: str | None = None
    """Burst of calls whose processes the task may use."""
    arrays: tuple[str, ...] = ()
    """Ids of the arrays in the parameters."""
    model: ModelUse | None = None
    session: SessionEntry | None = None
    session_number: int = 0
    """The session's number at submission."""
    worker: str | None = None
    """Name of the worker that runs it, or ran it last."""
    tokens: TokenLog | None = None
    """Text of a model so far, for prompts."""
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
    """Set at the next output and at the end. None without waiters."""
    told: int = 0
    _last: Task | None = None

    def transition(self, state: TaskState) -> None:
        """Change the state; raise `TaskConflict` if the table forbids it."""
        self.state = follow(self.state, state)
        self.changed = time.time()

    def elapsed(self) -> float | None:
        """Seconds of running, so far or in all; None before the start."""
        if self.execution_time is not None:
            return self.execution_time
        if self.state is TaskState.RUNNING and self.started_mono is not None:
            return time.monotonic() - self.started_mono
        return None

    @property
    def over(self) -> bool:
        """True once the end is recorded."""
        return self.state.terminal and self.done.reached

    def tell(self) -> None:
        """Wake the waiters for output."""
        if self.news is not None:
            self.news.set()
            self.news = None

    def lasting(self) -> Task:
        """Return the record for the history, without position and estimates."""
        return self.record() if self.state.terminal else self.snapshot(live=False)

    def record(self, parameters: bool = True) -> Task:
        """Return the current record; one shared object after the end."""
        if not self.state.terminal:
            return self.snapshot(parameters)
        if self._last is None:
            self._last = self.snapshot(live=False)
        return self._last if parameters else construct_unchecked(Task, {**self._last.__dict__, "parameters": None})

    def snapshot(self, parameters: bool = True, live: bool = True) -> Task:
        """Return a new record; `live` adds position, estimate and the running time so far."""
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
        """Return the current event content."""
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
    # Back to pending: the worker died, and the task has retries left.
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
    """Return `following` if it may follow `state`; raise `TaskConflict` otherwise."""
    if following not in TRANSITIONS[state]:
        raise TaskConflict(f"a task that is {state} can't become {following}")
    return following
