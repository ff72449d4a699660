"""Handles of tasks."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from openruntime_jupyter.client.ai_response import Reply, ToolRun
from openruntime_jupyter.client.array_data import download
from openruntime_jupyter.client.interruption import interruptible
from openruntime_jupyter.client.notebook_file import notebook
from openruntime_jupyter.client.object_schema import ObjectSchema
from openruntime_jupyter.client.tools import Rounds
from openruntime_jupyter.client.transport.protocol import LONGEST_WAIT, Backend, new_key
from openruntime_jupyter.client.transport.watch import OnMessage, Watch
from openruntime_jupyter.current_task import current
from openruntime_jupyter.errors import (
    InvalidRequest,
    OpenRuntimeError,
    TaskCancelled,
    TaskError,
    TaskFailed,
    TaskInterrupted,
    TaskTimedOut,
    WorkerDied,
    WouldDeadlock,
)
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.system import Device
from openruntime_jupyter.schemas.tasks import Ended, FailureKind, Origin, OutputItem, Progress, Task, TaskOutput, TaskResult, TaskState

ENDS: dict[TaskState, type[TaskError]] = {
    TaskState.FAILED: TaskFailed,
    TaskState.CANCELLED: TaskCancelled,
    TaskState.TIMED_OUT: TaskTimedOut,
    TaskState.INTERRUPTED: TaskInterrupted,
}


@dataclass(frozen=True)
class Output:
    """Output of a task so far. `str()` returns its text, stdout and stderr in order."""

    items: tuple[OutputItem, ...]
    truncated: bool
    """True if the output was truncated at the runtime's limit."""
    finished: bool
    """True if the output is complete."""

    @property
    def stdout(self) -> str:
        """Return the text of stdout."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """Return the text of stderr, including warnings and progress bars."""
        return self._stream("stderr")

    def _stream(self, name: str) -> str:
        return "".join(item.text or "" for item in self.items if item.name == name)

    def __str__(self) -> str:
        return "".join(item.text if item.text is not None else _plain(item) for item in self.items)


def record(backend: Backend, task_id: str, wait: float = 0.0) -> Task:
    """Return a task's record without its parameters, which may be large, at its end or after `wait` seconds."""
    return backend.call(api.GET_TASK, task_id, query={"parameters": False}, wait=wait)


ReadResult = Callable[[Backend, Task, TaskResult, "tuple[bytes, str] | None"], Any]
"""Reader of the value of a completed task from its record, its result, and the bytes and encoding of its payload if they are at hand."""


def plain_result(backend: Backend, _task: Task, result: TaskResult, _payload: tuple[bytes, str] | None) -> Any:
    """Return the output of an operation, or its arrays as `ArrayData`: one, or a tuple."""
    if result.payload is not None or not result.arrays:  # the arrays of an opaque result are parts of it
        return result.output
    arrays = tuple(download(backend, each.id) for each in result.arrays)
    return arrays[0] if len(arrays) == 1 else arrays


class TaskHandle:
    """Handle of a task.

    A handle is only a reference: any process can create it from the task's id (`connect().task(id)`), and dropping it does not
    affect the task. `status`, `progress`, `task` and `output` query the runtime each time until the task has ended.
    """

    def __init__(self, backend: Backend, task: Task, read: ReadResult, shown: TaskOutput | None = None) -> None:
        self._backend = backend
        self._read = read
        self._see(task)
        self._shown = shown
        self._payload: tuple[bytes, str] | None = None

    @property
    def id(self) -> str:
        """Return the task's id."""
        return self._task.task_id

    @property
    def last_seen(self) -> Task:
        """Return the record of the last query, without a new request."""
        return self._task

    @property
    def seen_at(self) -> float:
        """Return the time of the last query in seconds since the epoch."""
        return self._seen_at

    def _see(self, task: Task) -> Task:
        self._task, self._seen_at = task, time.time()
        return task

    @property
    def task(self) -> Task:
        """Return the current record without its parameters, which may be large (`connect().backend.call(GET_TASK, id)` has them)."""
        if not self._task.status.terminal:
            self._see(record(self._backend, self.id))
        return self._task

    def described(self) -> Task:
        """Return the current record with its code and its parameters, of which large ones are described by kind and size."""
        task = self._backend.call(api.GET_TASK, self.id, query={"summary": True})
        self._task = task.model_copy(update={"parameters": None})
        return task

    @property
    def status(self) -> TaskState:
        """Return `pending`, `running`, `completed`, `failed`, `cancelled`, `timed_out` or `interrupted`."""
        return self.task.status

    @property
    def progress(self) -> Progress | None:
        """Return the last reported progress, or None."""
        return self.task.progress

    @property
    def output(self) -> Output:
        """Return the output so far."""
        shown = self._backend.call(api.GET_OUTPUT, self.id)
        return Output(tuple(shown.items), shown.truncated, shown.finished)

    def follow_output(self, since: int = 0, wait: float = 0.0) -> TaskOutput:
        """Return the output after `since`, the `next` of an earlier response, waiting up to `wait` seconds for it.

        The `task` of the response is the record at that time.
        """
        shown, self._shown = self._shown, None
        if shown is None or since > 0:
            shown = self._backend.call(api.GET_OUTPUT, self.id, query={"since": since, "record": True}, wait=wait)
        if shown.task is not None:
            self._see(shown.task)
        return shown

    def iter_output(self) -> Iterator[OutputItem]:
        """Yield the output, and changes of earlier output, until the task's end."""
        shown = self.follow_output(0, LONGEST_WAIT)
        yield from shown.items
        while not shown.finished:
            shown = self.follow_output(shown.next, LONGEST_WAIT)
            yield from shown.items

    def wait(self, timeout: float | None = None) -> Task:
        """Wait for the task's end, at most `timeout` seconds (None: no limit), and return the record.

        Interrupting the wait does not cancel the task. The wait continues without the server for up to 20 s, and raises `NotConnected`
        then. Raises `WouldDeadlock` inside a task that would block its own lane.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with interruptible(f"{self.id} continues to run: cancel() of its handle stops it"):
            while not (self.task if in_worker() else self._task).status.terminal:
                refuse_deadlock(self._backend, self._task.device_used or self._task.device_preference, self.id)
                left = LONGEST_WAIT if deadline is None else min(LONGEST_WAIT, deadline - time.monotonic())
                if left <= 0:
                    return self.task
                self._see(record(self._backend, self.id, left))
        return self._task

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its result.

        The result is the operation's output dict, or an array or a tuple of arrays for operations with `return_arrays`. Clients that
        transfer Python objects return the function's value for `call` and a dict of the outputs by name for `python`.

        Raises `TaskFailed`, `WorkerDied`, `TaskTimedOut`, `TaskCancelled` or `TaskInterrupted` with the task's traceback in the
        message, and `TimeoutError` if the task has not ended after `timeout` seconds. The task then keeps running.
        """
        task = self.wait(timeout)
        if not task.status.terminal:
            raise TimeoutError(f"{self.id} is still {task.status} after {timeout:g} s and keeps running: wait again, or cancel() it")
        if task.status is not TaskState.COMPLETED:
            raise task_error(task)
        if task.result is None:
            raise OpenRuntimeError(f"{self.id} is completed, but its result was deleted")
        with interruptible(f"{self.id} is completed: result() of its handle returns its value"):
            value = self._read(self._backend, task, task.result, self._payload)
        self._payload = None
        return value

    def payload(self) -> bytes:
        """Return the opaque result of Python code. Loading it runs code: do that only if you trust the code of the task.

        Raises `TaskNotFound` if the task has none.
        """
        return self._backend.call(api.GET_PAYLOAD, self.id)

    def take(self, ended: Ended) -> None:
        """Store a result of `COLLECT_RESULTS`, so that `result()` needs no request. Raises `TaskNotFound` for an unknown task."""
        if isinstance(ended.task, OpenRuntimeError):
            raise ended.task
        self._see(ended.task)
        self._payload = ended.payload

    def watch(self, on_message: OnMessage) -> Watch:
        """Call `on_message(message)` for each event of the task and of the connection, on a thread that all watchers share; see `Watch`."""

        def on_own_message(message: dict[str, Any]) -> None:
            if message.get("data", {}).get("task_id", self.id) == self.id:
                on_message(message)

        return self._backend.watch(("task_update", "task_progress"), on_own_message)

    def cancel(self) -> Task:
        """Cancel the task and return its final record. `cancel_stage` is the stage that stopped it."""
        return self._see(self._backend.call(api.CANCEL_TASK, self.id))

    def set_priority(self, priority: int) -> Task:
        """Change the priority (1 to 10; 10 is the most urgent) of the pending task. Raises `TaskConflict` once it has started."""
        return self._see(self._backend.call(api.CHANGE_TASK, self.id, body={"priority": priority}))

    def purge(self) -> None:
        """Delete the ended task with its output and result. Raises `TaskConflict` before the task has ended."""
        self._backend.call(api.CANCEL_TASK, self.id, query={"purge": True})

    def __repr__(self) -> str:
        seen = "" if self._task.status.terminal else "last seen "
        return f"<{type(self).__name__} {self.id}: {self._task.name or self._task.operation}, {seen}{self._task.status}>"


def after_cancel(task: Task) -> str:
    """Return what became of a task whose waiter was interrupted and cancelled it."""
    if task.status is TaskState.COMPLETED:
        return f"{task.task_id} completed before it could be cancelled: connect().task({task.task_id!r}).result() returns its value"
    return f"{task.task_id} was cancelled" if task.status is TaskState.CANCELLED else f"{task.task_id} {task.status}"


def task_error(task: Task) -> TaskError:
    """Return the exception for a task that ended without completing. Its `task` is the record."""
    kind, failure = ENDS[task.status], task.failure
    if failure is None:
        return kind(task.error or f"{task.task_id} {task.status}", task)
    died = failure.kind is FailureKind.WORKER_DIED or failure.signal is not None or failure.exit_code is not None
    if kind is TaskFailed and died:
        kind = WorkerDied
    message = task.error or failure.message
    if failure.last_output and not failure.traceback:
        message += f"\n\nLast output:\n{failure.last_output.rstrip()}"
    return kind(with_traceback(message, failure.traceback), task)


def with_traceback(message: str, traceback: str | None) -> str:
    """Return the message of an error with the traceback in its worker, without its last line if that repeats the message."""
    frames = (traceback or "").rstrip()
    if frames.endswith(message):
        frames = frames.removesuffix(message).rpartition("\n")[0]  # before the message may be the module of the exception
    return f"{message}\n\nIn the worker:\n{frames}" if frames else message


def _plain(item: OutputItem) -> str:
    text = (item.data or {}).get("text/plain", "")
    return f"{''.join(text) if isinstance(text, list) else text}\n"


KEPT = ("operation", "parameters", "device_preference", "priority", "timeout", "retries", "name", "memory_limit", "session")
"""Fields of a task that a resubmission copies. The notebook is that of the caller."""


def again(backend: Backend, task_id: str, origin: Origin, changes: dict[str, Any] | None = None) -> Task:
    """Resubmit the task `task_id` with `changes` (fields of a `TaskRequest`) and return the new task.

    Raises the errors of a submission: `InvalidRequest` if arrays of the task have been deleted.
    """
    before = backend.call(api.GET_TASK, task_id)
    request = {"parameters": {}, **{name: value for name in KEPT if (value := getattr(before, name)) is not None}}
    caller = {"origin": origin, "notebook": notebook()}
    try:
        return backend.call(api.SUBMIT_TASK, body={**request, **(changes or {}), **caller}, key=new_key())
    except InvalidRequest as problem:
        if not request["parameters"].get("arrays"):
            raise
        gone = "the task can't be resubmitted, because its large arrays have been deleted: run its cell or call again"
        raise InvalidRequest.of("arrays", f"{gone} ({problem})") from problem


PROMPT = "ai_task_"
"""Prefix of the ids of AI tasks."""


class PromptHandle(TaskHandle):
    """Handle of an AI task. `for piece in handle` streams the text.

    `left_out` is the number of oldest conversation turns that did not fit the model's context. It is None if this handle did not
    submit the prompt. With functions as tools, each round of calls is a task, and the handle is that of the newest one.
    """

    def __init__(
        self,
        backend: Backend,
        task: Task,
        left_out: int | None = None,
        schema: ObjectSchema | None = None,
        rounds: Rounds | None = None,
    ) -> None:
        super().__init__(backend, task, plain_result)
        self.left_out = left_out
        self.rounds = rounds
        """Rounds of tool calls; None without functions as tools."""
        self.schema = schema
        """Schema of the response; None for text."""
        self._one_at_a_time = threading.Lock()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return the response: a `Reply`, or the object of the prompt's `schema`.

        Functions of `tools` run in the calling thread. `timeout` is the limit for all rounds in seconds. Raises the errors of
        `TaskHandle.result`, and `OpenRuntimeError` for a text that does not fit the schema, and after too many rounds.
        """
        return self.result_of(self.reply(timeout))

    def result_of(self, reply: Reply) -> Any:
        """Return the result of a reply: the object of the prompt's `schema`, or without one the reply."""
        return reply if self.schema is None else reply.value

    def reply(self, timeout: float | None = None) -> Reply:
        """Wait for the task and return the `Reply`, with `value` if the prompt has a `schema`; see `result`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.rounds is not None:
            self.rounds.require_functions()
        while True:
            task_id = self.id
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            reply = Reply.of(task_id, super().result(left))
            if not self._continue(reply):
                return self.finished(reply)

    @property
    def calls(self) -> tuple[ToolRun, ...]:
        """Return the calls of Python functions so far."""
        return () if self.rounds is None else tuple(self.rounds.runs)

    def finished(self, reply: Reply) -> Reply:
        """Return the reply of the last round with its object and the calls of all rounds."""
        value = None if self.schema is None or reply.tool_calls else self.schema.read(reply.text, reply.finish_reason)
        return replace(reply, calls=self.calls, value=value)

    def round(self) -> TaskHandle:
        """Return the handle of the newest round's task, whose result is its output."""
        return TaskHandle(self._backend, self._task, plain_result)

    def follow(self, task: Task) -> None:
        """Continue with the task of the next round."""
        self._see(task)

    def _continue(self, reply: Reply) -> bool:
        """Return whether a reply has calls, after running them and submitting the next round."""
        if self.rounds is None or not self.rounds.continues(reply):
            return False
        with self._one_at_a_time:
            if reply.task_id == self.id:  # else another thread has done it
                if self.rounds.recorded != reply.task_id:
                    self.rounds.record(reply, [self.rounds.run(call) for call in reply.tool_calls])
                self.follow(self.rounds.submit())
        return True

    def pieces(self, since: int = 0) -> Iterator[tuple[int, str]]:
        """Stream the text after `since` characters as (offset, piece) until the task ends in any state.

        An offset of 0 after the first piece restarts the text: the worker died and the task is retried. Closing the iterator does
        not cancel the task.
        """
        return self._backend.tokens(self.id, since)

    def __iter__(self) -> Iterator[str]:
        """Stream the text, of all rounds. Raises the errors of `result` at the end. Leaving the loop does not cancel the task."""
        if self.rounds is not None:
            self.rounds.require_functions()
        yield from self.stream_round()
        while self.rounds is not None and self._continue(Reply.of(self.id, super().result())):
            yield from self.stream_round()

    def stream_round(self) -> Iterator[str]:
        """Stream the text of the newest round. Raises the errors of `result` at the end."""
        pieces = self.pieces()
        while True:
            with interruptible(f"{self.id} continues to run: cancel() of its handle stops it"):
                following = next(pieces, None)
            if following is None:
                break
            yield following[1]
        task = self.wait()
        if task.status is not TaskState.COMPLETED:
            raise task_error(task)


def handle_of(backend: Backend, task: Task, read: ReadResult, shown: TaskOutput | None = None) -> TaskHandle:
    """Return a `PromptHandle` for an AI task, else a `TaskHandle` whose results `read` reads."""
    return PromptHandle(backend, task) if task.task_id.startswith(PROMPT) else TaskHandle(backend, task, read, shown)


def prompt_request(prompt: str, workflow: str, parameters: dict[str, Any], options: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return an `AiRequest` as JSON without None values. Raises `InvalidRequest` for an option that does not apply to prompts."""
    if "memory_limit" in options:
        raise InvalidRequest.of("memory_limit", "applies only to tasks that run code: a model's memory is known before it is loaded")
    given = {name: value for name, value in parameters.items() if value is not None}
    return {"workflow_type": workflow, "prompt": prompt, "parameters": given, "origin": origin, "notebook": notebook(), **options}


SPECIAL = (StopIteration, StopAsyncIteration)
"""Exceptions that control iteration: raised from a future they would end a loop."""


def as_raised(problem: BaseException) -> BaseException:
    """Return a `TaskFailed` as an exception that is also an instance of the built-in exception that the task raised.

    Other exceptions are returned unchanged. Only class and message are kept, not attributes such as `errno`.
    """
    if type(problem) is not TaskFailed or problem.task is None or problem.task.failure is None:
        return problem
    return _made(problem.task.failure.type or "", str(problem), problem.task)


def _made(name: str, message: str, task: Task | None) -> TaskFailed:
    return _combined(name)(message, task)


@cache
def _combined(name: str) -> type[TaskFailed]:
    """Return a subclass of `TaskFailed` and of the built-in exception `name`, or `TaskFailed` if none can be made."""
    raised = getattr(builtins, name, None)
    if not isinstance(raised, type) or not issubclass(raised, Exception) or issubclass(raised, SPECIAL):
        return TaskFailed
    members = {"__doc__": TaskFailed.__doc__, "__reduce__": _reduced(name), "__str__": _message}
    combined = type(TaskFailed.__name__, (TaskFailed, raised), members)
    try:
        combined("", None)
    except TypeError:  # some, such as UnicodeDecodeError, need arguments that stayed in the worker
        return TaskFailed
    return combined


def _message(problem: TaskFailed) -> str:
    return str(problem.args[0])  # some, such as KeyError, format the message with repr


def _reduced(name: str) -> object:
    return lambda problem: (_made, (name, str(problem), problem.task))


ADVICE = "Submit it and wait for its handle outside the task, or run the work directly in this task"


def in_worker() -> bool:
    """Return whether this code runs in a task, or in a process that a task started."""
    return current() is not None or os.environ.get("OPENRUNTIME_WORKER") == "1"


def refuse_deadlock(backend: Backend, wanted: str, what: str) -> None:
    """Raise `WouldDeadlock` if this code runs in a task and `what` runs, or may run, on that task's lane.

    `wanted` is the assigned or requested device of `what`. A waiting task keeps its slot: if all slots are held by waiting tasks,
    no task of the lane can start.
    """
    if not in_worker():
        return
    context = current()
    if context is not None and context.device_type != lane_of(wanted, backend.call(api.LIST_DEVICES)):
        return
    mine = context.task_id if context is not None else "the task that started this process"
    raise WouldDeadlock(f"Deadlock: waiting here would block {what}, because {mine} holds the device slot it needs. {ADVICE}")


def lane_of(wanted: str, devices: list[Device]) -> str:
    """Return the type (`gpu` or `cpu`) of a device id or preference."""
    types = {device.id: device.type for device in devices}
    fallback = "gpu" if "gpu" in types.values() else "cpu"
    return types.get(wanted) or ("cpu" if wanted == "cpu" else fallback)
