"""A task, as whoever submitted it or found it again holds it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.arrays import receive
from openruntime_jupyter.client.deadlock_guard import refuse_deadlock
from openruntime_jupyter.client.serialization import unpack
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT, Backend, new_key
from openruntime_jupyter.errors import (
    InvalidRequest,
    OpenRuntimeError,
    TaskCancelled,
    TaskError,
    TaskFailed,
    TaskInterrupted,
    TaskTimedOut,
    WorkerDied,
)
from openruntime_jupyter.schemas.tasks import Ended, FailureKind, Origin, OutputItem, Progress, Task, TaskOutput, TaskResult, TaskState

ENDS: dict[TaskState, type[TaskError]] = {
    TaskState.FAILED: TaskFailed,
    TaskState.CANCELLED: TaskCancelled,
    TaskState.TIMED_OUT: TaskTimedOut,
    TaskState.INTERRUPTED: TaskInterrupted,
}


@dataclass(frozen=True)
class Output:
    """What a task showed so far; `str()` of it is its text, stdout and stderr as they came."""

    items: tuple[OutputItem, ...]
    truncated: bool
    """Whether some was left out at the runtime's cap."""
    finished: bool
    """Whether no more will come."""

    @property
    def stdout(self) -> str:
        """What it printed."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """What it wrote to stderr, warnings and progress bars among it."""
        return self._stream("stderr")

    def _stream(self, name: str) -> str:
        return "".join(item.text or "" for item in self.items if item.name == name)

    def __str__(self) -> str:
        return "".join(item.text if item.text is not None else _plain(item) for item in self.items)


class TaskHandle:
    """One task of one runtime.

    It is only an address: it can be made again from the task's id, in any process (`connect().task(id)`), and nothing happens
    to the task when it is dropped. `status`, `progress`, `task` and `output` ask the runtime each time until the task has ended.
    """

    def __init__(self, backend: Backend, task: Task, shown: TaskOutput | None = None) -> None:
        self._backend = backend
        self._task = task
        self._shown = shown
        self._payload: tuple[bytes, str] | None = None

    @property
    def id(self) -> str:
        """The task's id."""
        return self._task.task_id

    @property
    def last_seen(self) -> Task:
        """The record as it was when it was last asked for, here or by another method."""
        return self._task

    @property
    def task(self) -> Task:
        """The record as it is now, without the parameters: they may be large, and `connect().backend.get(id)` has them."""
        if not self._task.status.terminal:
            self._task = self._backend.get(self.id, parameters=False)
        return self._task

    @property
    def status(self) -> TaskState:
        """`pending`, `running`, `completed`, `failed`, `cancelled`, `timed_out` or `interrupted`."""
        return self.task.status

    @property
    def progress(self) -> Progress | None:
        """How far the task last said it is; None if it never did."""
        return self.task.progress

    @property
    def output(self) -> Output:
        """What the task printed and displayed so far."""
        shown = self._backend.output(self.id)
        return Output(tuple(shown.items), shown.truncated, shown.finished)

    def follow_output(self, since: int = 0, wait: float = 0.0) -> TaskOutput:
        """Return what the task showed after `since`, the `next` of an earlier answer; wait for it for up to `wait` seconds.

        The answer's `task` is the record of the same moment.
        """
        shown, self._shown = self._shown, None
        if shown is None or since > 0:
            shown = self._backend.output(self.id, since, wait, record=True)
        if shown.task is not None:
            self._task = shown.task
        return shown

    def wait(self, timeout: float | None = None) -> Task:
        """The record at the task's end, or as it is after `timeout` seconds (None: however long it takes).

        Interrupting the wait does nothing to the task. Raises `WouldDeadlock` inside a task that would wait for its own lane.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.task.status.terminal:
            refuse_deadlock(self._backend, self._task.device_used or self._task.device_preference, self.id)
            left = LONGEST_WAIT if deadline is None else min(LONGEST_WAIT, deadline - time.monotonic())
            if left <= 0:
                break
            self._task = self._backend.wait(self.id, left)
        return self._task

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned, once it has ended.

        For `call` that is the function's value, for `python` a dict of the outputs by name, for an operation that was asked for whole
        arrays (`return_arrays`) the array or a tuple of them, else the operation's output dict. Large arrays in it are memory-mapped
        where the runtime is on this machine; MLX arrays come back as such where MLX is installed.
        Raises `TaskFailed`, `WorkerDied`, `TaskTimedOut`, `TaskCancelled` or `TaskInterrupted` with the task's own traceback in
        the message, and `TimeoutError` if it has not ended after `timeout` seconds; it goes on then.
        """
        task = self.wait(timeout)
        if not task.status.terminal:
            raise TimeoutError(f"{self.id} is still {task.status} after {timeout:g} s; it goes on: ask again, or cancel() it")
        if task.status is not TaskState.COMPLETED:
            raise task_error(task)
        if task.result is None:
            raise OpenRuntimeError(f"{self.id} is completed but its result is gone")
        if task.operation not in ("python", "call"):
            return self._arrays(task.result) if task.result.arrays else task.result.output
        if task.result.payload is None:
            return {} if task.operation == "python" else None
        payload, encoding = self._payload or self._backend.payload(self.id)
        self._payload = None
        return unpack(payload, encoding, [receive(self._backend, each) for each in task.result.arrays])

    def take(self, ended: Ended) -> None:
        """Have `result()` return what `Backend.collect` brought, without further requests; raises `TaskNotFound` for an unknown task."""
        if isinstance(ended.task, OpenRuntimeError):
            raise ended.task
        self._task, self._payload = ended.task, ended.payload

    def _arrays(self, result: TaskResult) -> Any:
        from openruntime_jupyter.arrays import conversion

        found = [(each, receive(self._backend, each)) for each in result.arrays]
        values = tuple(conversion.mlx_or_numpy(array) if each.kind == "mlx" else array for each, array in found)
        return values[0] if len(values) == 1 else values

    def cancel(self) -> Task:
        """Stop the task; returns its record once it has ended, with the stage that worked in `cancel_stage`."""
        self._task = self._backend.cancel(self.id)
        return self._task

    def set_priority(self, priority: int) -> Task:
        """Change the priority (1 to 10; 10 is the most urgent) while it waits; raises `TaskConflict` once it was started."""
        self._task = self._backend.reprioritise(self.id, priority)
        return self._task

    def purge(self) -> None:
        """Erase the ended task with its output and result; raises `TaskConflict` while it has not ended."""
        self._backend.purge(self.id)

    def __repr__(self) -> str:
        seen = "" if self._task.status.terminal else "last seen "
        return f"<{type(self).__name__} {self.id}: {self._task.name or self._task.operation}, {seen}{self._task.status}>"


def task_error(task: Task) -> TaskError:
    """The exception for a task that ended without completing; `task` is on it."""
    kind, failure = ENDS[task.status], task.failure
    if failure is None:
        return kind(task.error or f"{task.task_id} {task.status}", task)
    died = failure.kind is FailureKind.WORKER_DIED or failure.signal is not None or failure.exit_code is not None
    if kind is TaskFailed and died:
        kind = WorkerDied
    lines = [task.error or failure.message]
    if failure.traceback:
        lines += ["", "In the worker:", failure.traceback.rstrip()]
    elif failure.last_output:
        lines += ["", "The last it wrote:", failure.last_output.rstrip()]
    return kind("\n".join(lines), task)


def _plain(item: OutputItem) -> str:
    text = (item.data or {}).get("text/plain", "")
    return f"{''.join(text) if isinstance(text, list) else text}\n"


KEPT = ("operation", "parameters", "device_preference", "priority", "timeout", "retries", "name", "memory_limit", "session")
"""What a task has from whoever submitted it."""


def again(backend: Backend, task_id: str, origin: Origin, changes: dict[str, Any] | None = None) -> Task:
    """Submit what the task `task_id` was submitted as, but for the `changes` (fields of a `TaskRequest`); returns the new task.

    Raises what submitting raises: `InvalidRequest`, for one, where arrays that it worked on are gone by now.
    """
    before = backend.get(task_id)
    request = {"parameters": {}, **{name: value for name in KEPT if (value := getattr(before, name)) is not None}}
    try:
        return backend.submit({**request, **(changes or {}), "origin": origin}, new_key())
    except InvalidRequest as problem:
        if not request["parameters"].get("arrays"):
            raise
        gone = "large arrays are let go of at a task's end, so it can't be done once more: run its cell, or make its call, again"
        raise InvalidRequest.of("arrays", f"{gone} ({problem})") from problem


PROMPT = "ai_task_"
"""How the ids of AI tasks begin."""


class PromptHandle(TaskHandle):
    """One AI task of one runtime: a `TaskHandle` whose text can be read while it is written, `for piece in handle`.

    `left_out` is how many of its conversation's oldest turns the model had no room for; None where this handle did not ask.
    """

    def __init__(self, backend: Backend, task: Task, left_out: int | None = None) -> None:
        super().__init__(backend, task)
        self.left_out = left_out

    def result(self, timeout: float | None = None) -> Reply:
        """The whole answer, once it is there; raises what `TaskHandle.result` raises."""
        return Reply.of(self.id, super().result(timeout))

    def pieces(self, since: int = 0) -> Iterator[tuple[int, str]]:
        """The text after `since` characters as it is written: (characters before it, piece), until the task ends, however it ends.

        A piece whose first number is 0 again begins anew: the worker died, and the task runs again. Closing it cancels nothing.
        """
        return self._backend.prompts.tokens(self.id, since)

    def __iter__(self) -> Iterator[str]:
        """The text piece by piece as it is written; at the end raises what `result` raises. Leaving the loop cancels nothing."""
        for _, piece in self.pieces():
            yield piece
        task = self.wait()
        if task.status is not TaskState.COMPLETED:
            raise task_error(task)


def handle_of(backend: Backend, task: Task) -> TaskHandle:
    """The kind of handle that is right for a task."""
    return (PromptHandle if task.task_id.startswith(PROMPT) else TaskHandle)(backend, task)


def prompt_request(prompt: str, workflow: str, parameters: dict[str, Any], options: dict[str, Any], origin: str) -> dict[str, Any]:
    """An `AiRequest` as JSON: what is None is not sent. Raises `InvalidRequest` for an option that prompts don't have."""
    if "memory_limit" in options:
        raise InvalidRequest.of("memory_limit", "is for tasks that run code: a model's memory is known before it is loaded")
    given = {name: value for name, value in parameters.items() if value is not None}
    return {"workflow_type": workflow, "prompt": prompt, "parameters": given, "origin": origin, **options}
