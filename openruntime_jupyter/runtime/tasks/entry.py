"""A task of this runtime: its states, its queue key, and its output."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from openruntime_jupyter.engines.protocol import ExecutionEnvironment, ModelUse, StopReason
from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.operations.parameter_summary import contains, search_text
from openruntime_jupyter.runtime.tasks.sessions import SessionEntry
from openruntime_jupyter.schemas.arrays import ArrayReference
from openruntime_jupyter.schemas.base import construct_unchecked, iso, timestamp
from openruntime_jupyter.schemas.events import TaskNews
from openruntime_jupyter.schemas.tasks import (
    LIVE_WIDGET,
    Failure,
    Origin,
    OutputItem,
    PerformanceMetrics,
    Progress,
    Task,
    TaskOutput,
    TaskResult,
    TaskState,
)
from openruntime_jupyter.schemas.values import ReasoningPiece, ResponsePiece, TokenPiece, ToolCallPiece

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

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not raise, once the event is set; at once if it is set already."""
        if self.reached:
            callback()
            return
        self._callbacks = self._callbacks or []
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Undo `add_callback`. Has no effect once the event is set."""
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
        event.add_callback(count)
    timer = None if timeout is None else loop.call_later(timeout, partial(_wake, enough))
    try:
        await enough
    finally:
        if timer is not None:
            timer.cancel()
        for event in pending:
            event.remove_callback(count)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


TAIL_CHARACTERS = 20_000
Stream = Literal["stdout", "stderr"]

DISPLAY_FACTOR = 10
"""Rich output may be this many times as large as text, because of images."""


@dataclass(slots=True, eq=False)
class _Kept:
    """Item of an output buffer, with the sequence numbers of its creation and its last change."""

    item: OutputItem
    created: int
    changed: int
    region: str | None = None
    """Id of the output widget that captured the item."""

    @property
    def size(self) -> int:
        """Approximate number of characters."""
        return len(self.item.text or "") if self.item.data is None else display_size(self.item.data)


def display_size(data: dict[str, Any]) -> int:
    """Return the approximate number of characters of a MIME bundle."""
    return sum(len(value) if isinstance(value, str) else 1000 for value in data.values())


class OutputBuffer:
    """Present output of a task, filled by `print`, `display` and `clear`; `read(since)` returns the changes after a cursor.

    The buffer keeps the state, not its history: an update replaces a display, and a clear deletes items. Text is kept up to `cap`
    characters, then only its end, with a note about the omitted part. Rich output beyond `DISPLAY_FACTOR` times `cap` is left out, with one
    note until the next clear. A cursor is the sequence number of the last change.
    """

    def __init__(self, cap: int) -> None:
        self.truncated = False
        self._cap = cap
        self._kept: list[_Kept] = []
        self._displays: dict[str, list[_Kept]] = {}
        self._updated: dict[_Kept, None] = {}  # ordered by the last change
        self._sequence = 0
        self._cleared_at = 0
        self._clear_later: set[str | None] = set()  # regions cleared by their next output
        self._region: str | None = None
        self._open: list[str] = []
        self._open_name: Stream | None = None
        self._text_kept = 0
        self._displays_kept = 0
        self._noted_display = False
        self._left_out = 0
        self._tail = ""
        self._tail_name: Stream = "stdout"
        self._finished = False

    @property
    def items(self) -> list[OutputItem]:
        """Present items, without text that is not sealed yet."""
        return [kept.item for kept in self._kept]

    @property
    def used(self) -> bool:
        """True if there ever was output, also if it was deleted."""
        return self._sequence > 0

    @property
    def size(self) -> int:
        """Approximate number of characters."""
        return self._text_kept + self._displays_kept

    @property
    def clears_next(self) -> bool:
        """True if the next text or display of the present region deletes earlier output."""
        return self._region in self._clear_later

    def shows(self, display_id: str) -> bool:
        """True if an update with that id changes a present display."""
        return display_id in self._displays

    def print(self, name: Stream, text: str, omitted: int = 0) -> int:
        """Append `text` that the task wrote to `stdout` or `stderr`, after `omitted` characters that are only counted.

        Return the number of characters before the limit.
        """
        if self._clear_later and (text or omitted):
            self._clear_waiting()
        if omitted:
            self._leave_out(name, "")
            self._left_out += omitted
        room = 0 if self._left_out else max(0, self._cap - self._text_kept)
        kept, rest = text[:room], text[room:]
        if room:
            self._text_kept += len(kept)
            if self._open_name != name:
                self._seal()
                self._open_name = name
            self._open.append(kept)
        if rest:
            self._leave_out(name, rest)
        return len(kept)

    def note(self, text: str) -> None:
        """Append a message of the runtime about a new attempt, on separate lines."""
        self._seal()
        self._region = None  # the dead worker cannot end it
        self._clear_later.clear()
        last = self._tail or (self._kept[-1].item.text if self._kept else None) or "\n"
        self.print("stderr", text if last.endswith("\n") else f"\n{text}")

    def _leave_out(self, name: Stream, text: str) -> None:
        if not self.truncated:
            self.truncated = True
            self._seal()
            self._append_note(
                f"\n[more than {self._cap:,} characters: further output is left out until the task ends, "
                f"then the last {TAIL_CHARACTERS:,} characters are shown]\n"
            )
        self._left_out += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
        self._tail_name = name

    def _append_note(self, text: str) -> None:
        self._append(OutputItem(output_type="stream", name="stderr", text=text))

    def _append(self, item: OutputItem) -> _Kept:
        self._sequence += 1
        kept = _Kept(item, self._sequence, self._sequence, self._region)
        self._kept.append(kept)
        return kept

    def apply(self, item: dict[str, Any]) -> int | None:
        """Apply a display message of the worker: a MIME bundle, `clear_output`, or `capture` of an output widget.

        Return the result of `display` for a bundle, else 0.
        """
        if item["output_type"] == "clear_output":
            self.clear(item["wait"])
        elif item["output_type"] == "capture":
            self.capture(item["region"])
        else:
            return self.display(item)
        return 0

    def display(self, item: dict[str, Any]) -> int | None:
        """Append a MIME bundle (`output_type`, `data`, `metadata`), or update the displays with its `display_id`.

        An update of a display of another task is kept once, as an update. Return the approximate growth in characters, or None if the
        bundle was left out. A bundle with `omitted` has no data, because a host left out that many bytes.
        """
        self._seal()
        data, metadata, display_id = item["data"], item["metadata"], item.get("display_id")
        update = item["output_type"] == "update_display_data"
        if self._clear_later and not update:
            self._clear_waiting()
        shown = self._displays.get(display_id, []) if update and display_id else []
        omitted = item.get("omitted")
        size = display_size(data) if omitted is None else omitted
        added = size * max(1, len(shown)) - sum(kept.size for kept in shown)
        if omitted is not None or self._displays_kept + added > self._cap * DISPLAY_FACTOR:
            self._leave_out_display(size)
            return None
        self._displays_kept += added
        for kept in shown:
            self._sequence += 1
            kept.item = kept.item.model_copy(update={"data": data, "metadata": metadata})
            kept.changed = self._sequence
            self._updated.pop(kept, None)
            self._updated[kept] = None
        if not shown:
            kept = self._append(OutputItem(output_type=item["output_type"], data=data, metadata=metadata, display_id=display_id))
            if display_id:
                self._displays.setdefault(display_id, []).append(kept)
        return added

    def _leave_out_display(self, size: int) -> None:
        self.truncated = True
        if not self._noted_display:
            self._noted_display = True
            self._append_note(
                f"[a rich output of {size:,} bytes was left out: the limit per task is {self._cap * DISPLAY_FACTOR:,}. "
                "Further ones are left out without a note]\n"
            )

    def capture(self, region: str | None) -> None:
        """Assign the following items to the output widget `region`, or to none. `clear` deletes only its items then."""
        self._seal()
        self._region = region

    def clear(self, wait: bool) -> None:
        """Delete the items of the current region, or all outside a region; with `wait` when its next output comes."""
        if wait:
            self._clear_later.add(self._region)
            return
        self._clear_later.discard(self._region)
        self._seal()
        self._noted_display = False
        region = self._region
        # Updates of other tasks' displays are not part of this output, and are never deleted.
        left = [kept for kept in self._kept if (region and kept.region != region) or kept.item.output_type == "update_display_data"]
        if not region:
            self.truncated, self._tail, self._left_out = False, "", 0
        if len(left) == len(self._kept):
            return
        self._kept, remaining = left, set(left)
        self._updated = {kept: None for kept in self._updated if kept in remaining}
        self._displays = {}
        for kept in left:
            if kept.item.display_id:
                self._displays.setdefault(kept.item.display_id, []).append(kept)
        self._text_kept = sum(kept.size for kept in left if kept.item.data is None)
        self._displays_kept = sum(kept.size for kept in left if kept.item.data is not None)
        self._sequence += 1
        self._cleared_at = self._sequence

    def _clear_waiting(self) -> None:
        if self._region in self._clear_later:
            self.clear(wait=False)

    def _seal(self) -> None:
        if self._open:
            self._append(OutputItem(output_type="stream", name=self._open_name, text="".join(self._open)))
            self._open = []
        self._open_name = None

    def finish(self) -> None:
        """Append the end of the omitted text; called when the task has finished."""
        if self._finished:
            return
        self._finished = True
        self._seal()
        if self._left_out:
            skipped = self._left_out - len(self._tail)
            self._append_note(f"[{skipped:,} characters left out]\n")
            self._append(OutputItem(output_type="stream", name=self._tail_name, text=self._tail))
            self._tail, self._left_out = "", 0

    def read(self, since: int) -> tuple[list[OutputItem], int]:
        """Return the changes after the cursor `since`, and the next cursor.

        A reader of items that were deleted gets `clear_output` and all present items. Other readers get new items in their present
        form, and `update_display_data` for older ones that have changed.
        """
        self._seal()
        if 0 < since < self._cleared_at:
            return cleared(self.items), self._sequence
        new = [kept.item for kept in self._kept[bisect_right(self._kept, since, key=lambda kept: kept.created) :]]
        changed = takewhile(lambda kept: kept.changed > since, reversed(self._updated))
        updates = [kept.item.model_copy(update={"output_type": "update_display_data"}) for kept in changed if kept.created <= since]
        return [*reversed(updates), *new], self._sequence

    def whole(self, task_id: str) -> TaskOutput:
        """Return the whole output for the history. Call it once the task has finished."""
        self.finish()
        items = [_without_live_widget(item) for item in self.items]
        return TaskOutput(task_id=task_id, items=items, next=self._sequence, truncated=self.truncated, finished=True)


def _without_live_widget(item: OutputItem) -> OutputItem:
    if item.data is None or LIVE_WIDGET not in item.data:
        return item
    return item.model_copy(update={"data": {kind: value for kind, value in item.data.items() if kind != LIVE_WIDGET}})


def cleared(items: list[OutputItem]) -> list[OutputItem]:
    """Return `items` after an item that deletes what its reader has got before."""
    return [OutputItem(output_type="clear_output", wait=bool(items)), *items]


def read_stored(output: TaskOutput, since: int) -> list[OutputItem]:
    """Return the items of a stored output after the cursor `since`; all of them after a clear if earlier ones have changed."""
    if since >= output.next:
        return []
    if since <= 0 or output.next == len(output.items):  # nothing was updated or deleted
        return output.items[max(0, since) :]
    return cleared(output.items)


@dataclass(slots=True)
class _LoggedCall:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class _Position:
    """Numbers of characters that a reader has of the text, of the reasoning, and of the arguments of each tool call."""

    text: int = 0
    reasoning: int = 0
    arguments: list[int] = field(default_factory=list)


class TokenLog:
    """Append-only response until it is closed: text, the reasoning before it, and tool calls. Any number of readers may read it."""

    __slots__ = ("_attempt", "_calls", "_changed", "_closed", "reasoning", "text")

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self._calls: list[_LoggedCall] = []
        self._attempt = 0
        self._closed = False
        self._changed: asyncio.Event | None = None

    @classmethod
    def of(cls, output: Mapping[str, Any]) -> TokenLog:
        """Return the closed log of the output of a completed task, the fields of an `Answer`."""
        log = cls()
        log.text, log.reasoning = (str(output.get(name) or "") for name in ("text", "reasoning"))
        log._calls = [_LoggedCall(call["id"], **call["function"]) for call in output.get("tool_calls") or ()]
        log.close()
        return log

    def add(self, piece: ResponsePiece) -> int:
        """Append a piece and return the number of characters of the text before it."""
        index = len(self.text)
        self.text += piece.text
        self.reasoning += piece.reasoning
        if (call := piece.call) is not None:
            if call.name is not None and call.index == len(self._calls):
                self._calls.append(_LoggedCall(call.id or f"call_{call.index}", call.name, call.arguments))
            elif 0 <= call.index < len(self._calls):
                self._calls[call.index].arguments += call.arguments
        self._wake_readers()
        return index

    def restart(self) -> None:
        """Clear the response for a new attempt after the worker died."""
        self.text = self.reasoning = ""
        self._calls = []
        self._attempt += 1
        self._wake_readers()

    def close(self) -> None:
        """End the response."""
        self._closed = True
        self._wake_readers()

    def _wake_readers(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def read(self, since: int = 0) -> AsyncIterator[TokenPiece | ReasoningPiece | ToolCallPiece]:
        """Yield the text after `since` characters as it is appended, and the reasoning and tool calls from their beginning."""
        attempt, position = self._attempt, _Position(since)
        while True:
            if attempt != self._attempt:
                attempt, position = self._attempt, _Position()
            if pieces := self._after(position):
                for piece in pieces:
                    yield piece
            elif self._closed:
                return
            else:
                self._changed = self._changed or asyncio.Event()
                await self._changed.wait()

    def _after(self, position: _Position) -> list[TokenPiece | ReasoningPiece | ToolCallPiece]:
        """Return the pieces after a position, and advance it to the end."""
        pieces: list[TokenPiece | ReasoningPiece | ToolCallPiece] = []
        if position.reasoning < len(self.reasoning):
            pieces.append(ReasoningPiece(position.reasoning, self.reasoning[position.reasoning :]))
            position.reasoning = len(self.reasoning)
        if position.text < len(self.text):
            pieces.append(TokenPiece(position.text, self.text[position.text :]))
            position.text = len(self.text)
        for index, call in enumerate(self._calls):
            if index == len(position.arguments):
                position.arguments.append(0)
                pieces.append(ToolCallPiece(index, id=call.id, name=call.name))
            if position.arguments[index] < len(call.arguments):
                pieces.append(ToolCallPiece(index, call.arguments[position.arguments[index] :]))
                position.arguments[index] = len(call.arguments)
        return pieces


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


class QueueKey(NamedTuple):
    """Sort key in the queue, smallest first. Constant while the task is pending, so that aging needs no reordering."""

    urgency: float
    sequence: int

    @classmethod
    def of(cls, submitted: float, priority: int, aging_seconds: float, sequence: int) -> QueueKey:
        """Return the key; `submitted` and `aging_seconds` are in seconds. Each step of priority equals `aging_seconds` of waiting."""
        return cls(submitted - priority * aging_seconds, sequence)


EVENT_FIELDS = frozenset(TaskNews.model_fields)
"""Fields of a record that an event has."""


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
    queue: str
    """Name of the queue in which it waits."""
    key: QueueKey
    priority: int
    owner: str | None
    origin: Origin
    wait: bool
    runtime: str
    output: OutputBuffer
    submitted_mono: float
    name: str | None = None
    notebook: str | None = None
    device_preference: str = "auto"
    timeout: float | None = None
    retries: int = 0
    memory_limit: int | None = None
    needs: int | None = None
    interpreter: str | None = None
    environment: ExecutionEnvironment = field(default_factory=ExecutionEnvironment)
    python: str | None = None
    """Minor version of Python that its parameters were pickled with, and that its caller unpickles results with; None without pickles."""
    private: bool = False
    """True if the task needs a worker process that has run no other task."""
    burst: str | None = None
    """Burst of calls whose processes the task may use."""
    arrays: tuple[str, ...] = ()
    """Ids of the arrays in the parameters."""
    inputs: list[ArrayReference] = field(default_factory=list)
    """The first of these arrays."""
    returns_arrays: bool = True
    """False if the result never has arrays."""
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
    progress_mono: float | None = None
    """Time of the last progress report."""
    waiting_for: str | None = None
    blocked_since: float | None = None
    drained_by: str | None = None
    """Lane that starts no other task until this one fits."""
    avoids: tuple[str, ...] = ()
    """Lanes where its worker died or did not start."""
    avoids_until: float = 0.0
    """Monotonic time until which another lane is preferred to those."""
    moves: int = 0
    """Number of hosts that were lost while it ran."""
    stop_reason: StopReason | None = None
    cancel_stage: str | None = None
    device_used: str | None = None
    result: TaskResult | None = None
    failure: Failure | None = None
    metrics: PerformanceMetrics = field(default_factory=lambda: _NO_METRICS)
    done: Completion = field(default_factory=Completion)
    output_event: asyncio.Event | None = None
    """Set at the next output and at the end. None without waiters."""
    published: int = 0
    """Cursor of the output that was published."""
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

    def time_left(self) -> float | None:
        """Remaining seconds by the last progress report, less those since then; None if unknown."""
        if self.progress is None or self.progress.remaining is None or self.progress_mono is None:
            return None
        return max(0.0, self.progress.remaining - (time.monotonic() - self.progress_mono))

    @property
    def kind(self) -> tuple[str, Hashable, Hashable]:
        """Kind of the task. Tasks of one kind usually take about as long.

        For `python` it is the code, for a call the name, for a prompt the name and the model, and otherwise the parameters with the shapes
        of arrays.
        """
        if self.operation == "python" and (code := self.given.get("code")):
            return self.operation, hash(code), None
        if self.operation in ("python", "call", "generate", "chat"):
            return self.operation, self.name, self.model.source.name if self.model is not None else None
        if not self.arrays:
            return self.operation, hash(self.parameters), None
        # The ids of arrays differ for each task.
        return self.operation, hash(search_text(self.given)), tuple((each.dtype, *each.shape) for each in self.inputs)

    @property
    def over(self) -> bool:
        """True once the end is recorded."""
        return self.state.terminal and self.done.reached

    def wake_readers(self) -> None:
        """Wake the readers that wait for output."""
        if self.output_event is not None:
            self.output_event.set()
            self.output_event = None

    def matches(self, notebook: str | None, name: str | None, search: str | None = None) -> bool:
        """Return whether the task is of `notebook`, its title contains `name`, and its title, code or parameters contain `search`.

        The title is the name or else the operation. Case is ignored.
        """
        title = (self.name or self.operation).casefold()
        return (
            notebook in (None, self.notebook)
            and (name is None or name.casefold() in title)
            and (search is None or contains(title, self.given, search))
        )

    def record(self, parameters: bool = True) -> Task:
        """Return a new record, without what changes while the task waits or runs; after the end one shared record."""
        if not self.state.terminal:
            return self._snapshot(parameters)
        if self._last is None:
            self._last = self._snapshot(parameters=True)
        return self._last if parameters else construct_unchecked(Task, {**vars(self._last), "parameters": None})

    def _snapshot(self, parameters: bool) -> Task:
        failure, session = self.failure, self.session
        return construct_unchecked(
            Task,
            {
                "task_id": self.task_id,
                "status": self.state,
                "operation": self.operation,
                "name": self.name,
                "owner": self.owner,
                "origin": self.origin,
                "notebook": self.notebook,
                "priority": self.priority,
                "device_preference": self.device_preference,
                "device_used": self.device_used,
                "session": session.id if session is not None else None,
                "session_name": session.name if session is not None else None,
                "timeout": self.timeout,
                "retries": self.retries,
                "attempt": self.attempt,
                "wait": self.wait,
                "memory_limit": self.memory_limit,
                "resident_bytes": None,
                "timestamp": timestamp(self.changed or self.submitted),
                "submitted_at": timestamp(self.submitted),
                "started_at": iso(self.started),
                "finished_at": iso(self.finished),
                "execution_time": self.execution_time,
                "position": None,
                "estimated_start": None,
                "waiting_for": None,
                "progress": self.progress,
                "cancel_stage": self.cancel_stage,
                "result": self.result,
                "error": failure.message if failure is not None else None,
                "failure": failure,
                "performance_metrics": self.metrics,
                "runtime": self.runtime,
                "here": True,
                "inputs": self.inputs,
                "parameters": self.given if parameters else None,
            },
        )

    def event(self) -> dict[str, Any]:
        """Return the current `EVENT_FIELDS`."""
        return {
            "task_id": self.task_id,
            "status": self.state.value,
            "execution_time": self.elapsed(),
            "operation": self.operation,
            "name": self.name,
            "owner": self.owner,
            "priority": self.priority,
            "attempt": self.attempt,
            "device_used": self.device_used,
            "error": self.failure.message if self.failure is not None else None,
            "cancel_stage": self.cancel_stage,
            "timestamp": timestamp(self.changed or self.submitted),
        }
