"""Task registry: tasks by id, their persistence, their events, and queries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from itertools import islice
from pathlib import Path
from typing import Any

from openruntime_jupyter.engines.protocol import Completed
from openruntime_jupyter.errors import StorageUnavailable, TaskConflict, TaskNotFound
from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.runtime.metrics.counters import Counters
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.entry import EVENT_FIELDS, Entry, TokenLog, read_stored
from openruntime_jupyter.schemas.base import iso, timestamp
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage, TaskState
from openruntime_jupyter.schemas.values import ReasoningPiece, TokenPiece, ToolCallPiece

log = logging.getLogger(__name__)

FINISHED_KEPT = 100
"""Number of ended tasks kept in memory, for queries right after the end."""

LARGEST_KEPT = 65_536
"""Largest parameters, in bytes, of an ended task kept in memory."""
LARGEST_OUTPUT_KEPT = 262_144
"""Largest output, in characters, of an ended task kept in memory: pictures of 100 tasks can be 1 GB."""

OTHERS_POLL = 0.25
"""Seconds between reads of a task that another runtime holds."""

OUTPUT_INTERVAL = 0.1
"""Seconds during which output is collected before it is published."""

COALESCE_SECONDS = 0.05
"""Seconds during which states of a task are coalesced."""

Resident = Callable[[str], int | None]
"""Resident bytes of the worker that runs a task; None if unknown."""

AT_ONCE = 200
"""Updates published in one loop iteration, which takes about a millisecond."""


class TaskUpdates:
    """Publication of task states, which are counted and coalesced here.

    A state is counted in the next loop iteration, because waiters, and the worker that runs the task, come first. A final state is
    published then. Of the others the newest is published after up to 50 ms, unless the task has changed since: its change follows then.
    """

    def __init__(self, bus: EventBus, counters: Counters) -> None:
        self._bus = bus
        self._counters = counters
        self._changes: list[tuple[Entry, TaskState]] = []
        self._held: dict[Entry, TaskState] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Entry) -> None:
        """Publish the state of a task, which is on disk."""
        if not self._changes:
            asyncio.get_running_loop().call_soon(self.count)
        self._changes.append((entry, entry.state))

    def count(self) -> None:
        """Count the new states and publish the final ones."""
        changes, self._changes = self._changes, []
        if changes:
            self._counters.changed(changes)
        for entry, state in changes:
            if state.terminal:
                self._held.pop(entry, None)
                self._publish(entry.event())
            else:
                self._held[entry] = state
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._release)

    def ended(self, task: Task) -> None:
        """Publish the end of a task that was never queued here."""
        self._publish(task.model_dump(mode="json", include=set(EVENT_FIELDS)))

    def _release(self) -> None:
        self._timer = None
        for entry in tuple(islice(self._held, AT_ONCE)):
            if self._held.pop(entry) is entry.state:
                self._publish(entry.event())
        if self._held:
            self._timer = asyncio.get_running_loop().call_later(0, self._release)

    def _publish(self, data: dict[str, Any]) -> None:
        self._bus.publish("task_update", {"type": "task_update", "data": data}, replay=True)

    def close(self) -> None:
        """Publish what is left."""
        self.count()
        while self._timer is not None:
            self._timer.cancel()
            self._release()


class TaskRegistry:
    """Tasks by id: their state changes, which go to disk and then to subscribers, and queries. `resident(task_id)` reads a task's memory.

    It holds the live tasks of this runtime and the last ones that ended. The history has all others.
    """

    def __init__(self, settings: Settings, history: History, bus: EventBus, counters: Counters, lanes: Lanes, resident: Resident) -> None:
        self.updates = TaskUpdates(bus, counters)
        self._entries: dict[str, Entry] = {}
        self._finished: OrderedDict[str, Entry] = OrderedDict()
        self._settings = settings
        self._history = history
        self._bus = bus
        self._counters = counters
        self._lanes = lanes
        self._resident = resident
        self._dirty: set[Entry] = set()
        self._timer: asyncio.TimerHandle | None = None

    def find(self, task_id: str) -> Entry | None:
        """Return the task if it is live here or has just ended, else None."""
        return self._entries.get(task_id) or self._finished.get(task_id)

    def inherit(self, entry: Entry) -> None:
        """Add a task of a dead runtime, which the history has already."""
        self._entries[entry.task_id] = entry

    def write_again(self) -> None:
        """Write the live tasks and the last ended ones, which a new file of the history does not have."""
        for entry in (*self._entries.values(), *self._finished.values()):
            self._history.write_behind(entry.task_id, entry.record)

    def forget(self, task_id: str) -> None:
        """Drop an ended task."""
        self._finished.pop(task_id, None)

    async def admit(self, entry: Entry, key: tuple[str, str, str] | None = None) -> tuple[str, str] | None:
        """Record a new task: an asynchronous one is on disk when this returns, with its key; raises `StorageUnavailable`.

        If the key has a task already, nothing is recorded, and its id and fingerprint are returned.
        """
        if entry.wait:
            self._history.write_behind(entry.task_id, entry.record)
        elif key is None:
            await self._history.commit(entry.record())
        elif (earlier := await self._history.commit_new(entry.record(), key)) is not None:
            return earlier
        self._entries[entry.task_id] = entry
        return None

    async def admit_all(self, entries: list[Entry], tasks: list[Task], key: tuple[str, str, str] | None = None) -> set[str]:
        """Record new asynchronous tasks, and return when `tasks` are on disk: the ids of purged ones. See `History.commit_all`."""
        refused = await self._history.commit_all(tasks, key)
        self._entries.update((entry.task_id, entry) for entry in entries if entry.task_id not in refused)
        return refused

    async def record(self, entry: Entry) -> bool:
        """Record a changed state; return False if another runtime has taken over the task, which must not run here then."""
        state = entry.state
        if state.terminal:
            self._close_output(entry)
        if entry.wait:
            self._history.write_behind(entry.task_id, entry.record)
        else:
            try:
                await self._history.commit(entry.record())
            except TaskConflict as problem:
                log.warning("%s is not ours any more: %s", entry.task_id, problem)
                if not entry.state.terminal:
                    self._release_lost(entry)
                    return False
            except StorageUnavailable as problem:
                # The task continues, and its state is written as soon as possible.
                log.warning("%s is %s, which can't be stored now: %s", entry.task_id, entry.state, problem)
                self._history.write_behind(entry.task_id, entry.record)
        if entry.state is not state:
            return True  # changed again during the write; the later change is published by its own call
        if state.terminal:
            self._entries.pop(entry.task_id, None)
            if len(entry.parameters) <= LARGEST_KEPT and entry.output.size <= LARGEST_OUTPUT_KEPT:
                self._finished[entry.task_id] = entry
            entry.parameters = b""
            while len(self._finished) > FINISHED_KEPT:
                self._finished.popitem(last=False)
        self.updates.add(entry)
        return True

    def _release_lost(self, entry: Entry) -> None:
        """Remove a task that another runtime has taken over: queries are answered by the history from now on."""
        self._entries.pop(entry.task_id, None)
        self._counters.lost(entry.task_id)
        if entry.tokens is not None:
            entry.tokens.close()
        entry.done.reach()

    def keep_payload(self, entry: Entry, outcome: Completed) -> None:
        """Store the opaque result of a task."""
        data = outcome.payload
        if data is None:
            self._history.put_payload(entry.task_id, outcome.encoding, self._settings.payloads / f"{entry.task_id}.{entry.attempt}")
        else:
            self._history.put_payload(entry.task_id, outcome.encoding, data)

    # Output

    def output_changed(self, entry: Entry) -> None:
        """Publish new output, at most ten times a second."""
        if entry.state.terminal:  # published as a whole
            return
        self._dirty.add(entry)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(OUTPUT_INTERVAL, self._publish_output)

    def _publish_output(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for entry in dirty:
            self._publish_output_of(entry)

    def _publish_output_of(self, entry: Entry) -> None:
        entry.wake_readers()
        if self._bus.watched("task_output"):
            items, following = entry.output.read(entry.published)
            entry.published = following
            if items:
                body = [item.model_dump() for item in items]
                self._bus.publish(
                    "task_output", {"type": "task_output", "data": {"task_id": entry.task_id, "items": body, "next": following}}
                )

    def _close_output(self, entry: Entry) -> None:
        entry.output.finish()
        self._dirty.discard(entry)
        if entry.output.used:
            self._publish_output_of(entry)
            self._history.put_output(entry.task_id, entry.output.whole(entry.task_id))

    def progressed(self, entry: Entry) -> None:
        """Publish new progress."""
        if self._bus.watched("task_progress") and entry.progress is not None:
            data = {"task_id": entry.task_id, **entry.progress.model_dump()}
            self._bus.publish("task_progress", {"type": "task_progress", "data": data})

    def generated(self, entry: Entry, index: int, text: str) -> None:
        """Publish new text of a model after `index` characters."""
        if self._bus.watched("ai_token"):
            data = {"task_id": entry.task_id, "index": index, "text": text}
            self._bus.publish("ai_token", {"type": "ai_token", "data": data})

    # Queries

    def view(self, entry: Entry, parameters: bool = True) -> Task:
        """Return the current record of a task, with its place in the queue, or its running time and memory so far."""
        task = entry.record(parameters)
        if entry.state is TaskState.PENDING:
            task.position = self._lanes.position(entry)
            task.estimated_start = iso(self._lanes.estimate(entry))
            task.waiting_for = entry.waiting_for or self._lanes.queue_of(entry).waiting_for
        elif not entry.state.terminal:
            task.execution_time = entry.elapsed()
            task.resident_bytes = self._resident(entry.task_id)
            task.waiting_for = entry.waiting_for
            if task.progress is not None and (left := entry.time_left()) is not None:
                task.progress = task.progress.model_copy(update={"remaining": left})
        return task

    async def wait(self, task_id: str, timeout: float | None = None, parameters: bool = True) -> Task:
        """Return the ended task, or its record after `timeout` seconds; raise `TaskNotFound`."""
        entry = self.find(task_id)
        if entry is not None:
            await entry.done.wait(timeout)
            return self.view(entry, parameters) if entry.over else await self.get(task_id, parameters)
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            task = await self.get(task_id, parameters)
            if task.status.terminal or (ends is not None and time.monotonic() >= ends):
                return task
            await asyncio.sleep(OTHERS_POLL)

    async def get(self, task_id: str, parameters: bool = True) -> Task:
        """Return the task, of any runtime of this user; raise `TaskNotFound`.

        Without its parameters, which may be megabytes, it costs little, however often it is asked for.
        """
        entry = self.find(task_id)
        if entry is not None:
            if entry.state.terminal:  # its end is being recorded
                await entry.done.wait()
            return self.view(entry, parameters)
        task = await self._history.get(task_id, parameters)
        if task is None:
            raise TaskNotFound(f"Unknown task {task_id!r}: its id is wrong, or the history no longer keeps it")
        return task

    async def page(self, query: TasksQuery) -> TaskPage:
        """Return a page of the tasks of all this user's runtimes, newest first."""
        filters = query.state, query.operation, query.owner, query.notebook, query.name, query.search
        found, total, following = await self._history.page(query.limit, query.before, query.offset, *filters, self._describe)
        live = [self._newest(task) for task in found]
        return TaskPage(tasks=live, total_count=total, next_before=following, timestamp=timestamp(time.time()))

    def _describe(self) -> dict[str, Callable[[], Task]]:
        return {task_id: entry.record for task_id, entry in self._entries.items()}

    def _newest(self, stored: Task) -> Task:
        entry = self._entries.get(stored.task_id)
        return stored if entry is None or entry.state.terminal else self.view(entry, parameters=False)

    async def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return the output after cursor `since`, after up to `wait` seconds for something new; `record` adds the task's record."""
        shown = await self._output(task_id, since, wait)
        if not record:
            return shown
        entry = self.find(task_id)
        reasoning = None if entry is None or entry.tokens is None or entry.over else entry.tokens.reasoning or None
        return shown.model_copy(update={"task": await self.get(task_id, parameters=False), "reasoning": reasoning})

    async def _output(self, task_id: str, since: int, wait: float) -> TaskOutput:
        entry = self.find(task_id)
        if entry is None:
            return await self._others_output(task_id, since, wait)
        ends = time.monotonic() + wait
        while True:
            items, following = entry.output.read(since)
            left = ends - time.monotonic()
            if items or left <= 0 or entry.over:
                return TaskOutput(task_id=task_id, items=items, next=following, truncated=entry.output.truncated, finished=entry.over)
            output_event = entry.output_event = entry.output_event or asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(output_event.wait(), left)

    async def _others_output(self, task_id: str, since: int, wait: float) -> TaskOutput:
        """Return the stored output of an ended task, or of one that another runtime runs, by polling."""
        ends = time.monotonic() + wait
        while True:
            task = await self.get(task_id, parameters=False)
            stored = await self._history.get_output(task_id) or TaskOutput(task_id=task_id, items=[], next=0)
            items = read_stored(stored, since)
            if items or task.status.terminal or time.monotonic() >= ends:
                return stored.model_copy(update={"items": items, "finished": task.status.terminal})
            await asyncio.sleep(OTHERS_POLL)

    async def tokens(self, task_id: str, since: int = 0) -> AsyncIterator[TokenPiece | ReasoningPiece | ToolCallPiece]:
        """Yield the text of a model after `since` characters, its reasoning and tool calls, until the task ends; raise `TaskNotFound`."""
        entry = self.find(task_id)
        if entry is not None and entry.tokens is not None:
            async for piece in entry.tokens.read(since):
                yield piece
            return
        task = await self.wait(task_id, parameters=False)
        if task.result is not None:
            log = TokenLog.of(task.result.output)
        else:
            output = await self.output(task_id)
            log = TokenLog.of({"text": "".join(item.text or "" for item in output.items if item.name == "stdout")})
        async for piece in log.read(since):
            yield piece

    async def payload(self, task_id: str) -> tuple[bytes | Path, str]:
        """Return the opaque result and its encoding; raise `TaskNotFound` if it is missing."""
        task = await self.get(task_id, parameters=False)
        found = await self._history.get_payload(task_id)
        if found is None:
            why = "returned none" if task.status is TaskState.COMPLETED else f"is {task.status}"
            raise TaskNotFound(f"The task {task_id!r} has no payload: it {why}, or the payload has expired")
        return found

    def close(self) -> None:
        """Publish what is left."""
        self.updates.close()
        if self._timer is not None:
            self._timer.cancel()
            self._publish_output()
