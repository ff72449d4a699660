"""What every change of a task's state goes through: disk where it must, then event, so that nobody hears what could be lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from openruntime_jupyter.engines.protocol import Completed
from openruntime_jupyter.errors import StorageUnavailable, TaskConflict, TaskNotFound
from openruntime_jupyter.runtime.events.bus import EventBus
from openruntime_jupyter.runtime.events.tokens import TokenPiece
from openruntime_jupyter.runtime.metrics.counters import Counters
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.entry import NEWS, Entry, TaskNews
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage, TaskState

log = logging.getLogger(__name__)

FINISHED_KEPT = 100
"""Ended tasks kept in memory besides the history, for those who ask right after the end."""

LARGEST_KEPT = 65_536
"""Bytes of parameters up to which an ended task is kept there."""
LARGEST_OUTPUT_KEPT = 262_144
"""Characters of what it showed, likewise: pictures of a hundred tasks can be a gigabyte."""

OTHERS_POLL = 0.25
"""Seconds between reads of a task that another runtime holds."""

OUTPUT_INTERVAL = 0.1
"""Seconds in which output is gathered before it is told."""


class TaskRegistry:
    """Tasks by id: their state changes, which go to disk and then to subscribers, and queries.

    It holds the live tasks of this runtime and the last ones that ended. The history has all others.
    """

    def __init__(self, settings: Settings, history: History, bus: EventBus, counters: Counters) -> None:
        self._entries: dict[str, Entry] = {}
        self._finished: OrderedDict[str, Entry] = OrderedDict()
        self._settings = settings
        self._history = history
        self._bus = bus
        self._counters = counters
        self._dirty: set[Entry] = set()
        self._untold: list[tuple[Entry, TaskState]] = []
        self._timer: asyncio.TimerHandle | None = None

    def find(self, task_id: str) -> Entry | None:
        """The task, if it lives or has just ended here."""
        return self._entries.get(task_id) or self._finished.get(task_id)

    @property
    def live(self) -> list[Entry]:
        """The tasks of this runtime that have not ended."""
        return list(self._entries.values())

    def inherit(self, entry: Entry) -> None:
        """Add a task of a dead runtime, which the history has already."""
        self._entries[entry.task_id] = entry

    def forget(self, task_id: str) -> None:
        """Drop an ended task."""
        self._finished.pop(task_id, None)

    async def admit(self, entry: Entry, key: tuple[str, str, str] | None = None) -> tuple[str, str] | None:
        """Record a new task: an asynchronous one is on disk when this returns, with its key; raises `StorageUnavailable`.

        Returns what `History.commit_new` does where the key stands for a task already; nothing is recorded then.
        """
        if entry.wait:
            self._history.write_behind(entry.task_id, entry.lasting)
        elif key is None:
            await self._history.commit(entry.lasting())
        elif (earlier := await self._history.commit_new(entry.lasting(), key)) is not None:
            return earlier
        self._entries[entry.task_id] = entry
        return None

    async def admit_all(self, entries: list[Entry], tasks: list[Task], key: tuple[str, str, str] | None = None) -> set[str]:
        """New asynchronous tasks, on disk as `tasks` when this returns; the ids of those that were purged. See `History.commit_all`."""
        refused = await self._history.commit_all(tasks, key)
        self._entries.update((entry.task_id, entry) for entry in entries if entry.task_id not in refused)
        return refused

    def announce(self, entry: Entry) -> None:
        """Tell of its state in the loop's next turn: whoever waits for it, and the worker that is to run it, have their part first."""
        if not self._untold:
            asyncio.get_running_loop().call_soon(self.tell_states)
        self._untold.append((entry, entry.state))

    def tell_states(self) -> None:
        """Tell of all that was announced."""
        if not self._untold:
            return
        untold, self._untold = self._untold, []
        self._counters.changed(untold)
        for entry, state in untold:
            if entry.state is state:
                self._bus.task_update(entry.task_id, partial(_news, entry, state), state.terminal)

    def tell_of(self, task: Task) -> None:
        """Tell of the end of a task that never waited in a lane here."""
        news = task.model_dump(mode="json", include=set(NEWS))
        self._bus.task_update(task.task_id, lambda: news, terminal=True)

    async def record(self, entry: Entry) -> bool:
        """Its state has changed. False: another runtime has taken the task over, which must not run here any more."""
        state = entry.state
        if state.terminal:
            self._close_output(entry)
        if entry.wait:
            self._history.write_behind(entry.task_id, entry.lasting)
        else:
            try:
                await self._history.commit(entry.lasting())
            except TaskConflict as problem:
                log.warning("%s is not ours any more: %s", entry.task_id, problem)
                if not entry.state.terminal:
                    self._lose(entry)
                    return False
            except StorageUnavailable as problem:
                # The work is done or under way: it goes on, and is written as soon as that is possible.
                log.warning("%s is %s, which can't be stored now: %s", entry.task_id, entry.state, problem)
                self._history.write_behind(entry.task_id, entry.lasting)
        if entry.state is not state:
            return True  # it went on meanwhile, as when it is moved and cancelled at once: whoever records that tells of it
        if state.terminal:
            self._entries.pop(entry.task_id, None)
            if len(entry.parameters) <= LARGEST_KEPT and entry.output.size <= LARGEST_OUTPUT_KEPT:
                self._finished[entry.task_id] = entry
            entry.parameters = b""
            while len(self._finished) > FINISHED_KEPT:
                self._finished.popitem(last=False)
        self.announce(entry)
        return True

    def _lose(self, entry: Entry) -> None:
        """Forget a task that is another's: whoever asks for it is told by the history from here on."""
        self._entries.pop(entry.task_id, None)
        self._counters.lost(entry.task_id)
        if entry.tokens is not None:
            entry.tokens.close()
        entry.done.reach()

    def keep_payload(self, entry: Entry, outcome: Completed) -> None:
        """Store an opaque result beside its task."""
        data = outcome.payload
        if data is None:
            self._history.put_payload(entry.task_id, outcome.encoding, self._settings.payloads / f"{entry.task_id}.{entry.attempt}")
        else:
            self._history.put_payload(entry.task_id, outcome.encoding, data)

    # Output

    def output_changed(self, entry: Entry) -> None:
        """It printed or showed something; told of at most ten times a second."""
        if entry.state.terminal:  # it was told as a whole
            return
        self._dirty.add(entry)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(OUTPUT_INTERVAL, self._tell_output)

    def _tell_output(self) -> None:
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for entry in dirty:
            self._tell_output_of(entry)

    def _tell_output_of(self, entry: Entry) -> None:
        entry.tell()
        if self._bus.watched("task_output"):
            items, following = entry.output.read(entry.told)
            entry.told = following
            if items:
                body = [item.model_dump(exclude_none=True) for item in items]
                self._bus.publish(
                    "task_output", {"type": "task_output", "data": {"task_id": entry.task_id, "items": body, "next": following}}
                )

    def _close_output(self, entry: Entry) -> None:
        entry.output.finish()
        self._dirty.discard(entry)
        if entry.output.items:
            self._tell_output_of(entry)
            self._history.put_output(entry.task_id, entry.output.whole(entry.task_id))

    def progressed(self, entry: Entry) -> None:
        """It said how far it is."""
        if self._bus.watched("task_progress") and entry.progress is not None:
            data = {"task_id": entry.task_id, **entry.progress.model_dump()}
            self._bus.publish("task_progress", {"type": "task_progress", "data": data})

    def generated(self, entry: Entry, piece: TokenPiece) -> None:
        """A model wrote some text for it."""
        if self._bus.watched("ai_token"):
            data = {"task_id": entry.task_id, "index": piece.index, "text": piece.text}
            self._bus.publish("ai_token", {"type": "ai_token", "data": data})

    # Queries

    async def wait(self, task_id: str, timeout: float | None = None, parameters: bool = True) -> Task:
        """The task when it has ended, or as it is after `timeout` seconds; raises `TaskNotFound`."""
        entry = self.find(task_id)
        if entry is not None:
            await entry.done.wait(timeout)
            return entry.record(parameters) if entry.over else await self.get(task_id, parameters)
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            task = await self.get(task_id, parameters)
            if task.status.terminal or (ends is not None and time.monotonic() >= ends):
                return task
            await asyncio.sleep(OTHERS_POLL)

    async def get(self, task_id: str, parameters: bool = True) -> Task:
        """The task, whichever runtime of this user holds it; raises `TaskNotFound`.

        Without its parameters, which may be megabytes, it costs little, however often it is asked for.
        """
        entry = self.find(task_id)
        if entry is not None:
            if entry.state.terminal:  # which is being recorded
                await entry.done.wait()
            return entry.record(parameters)
        task = await self._history.get(task_id)
        if task is None:
            raise TaskNotFound(f"There is no task {task_id}: it never was, or it is older than what the history keeps.")
        if not parameters:
            task.parameters = None
        return task

    async def page(
        self,
        limit: int = 100,
        before: str | None = None,
        offset: int = 0,
        states: list[TaskState] | None = None,
        operation: str | None = None,
        owner: str | None = None,
    ) -> TaskPage:
        """Tasks of all this user's runtimes, newest first."""
        found, total, following = await self._history.page(limit, before, offset, states, operation, owner)
        live = [self._newest(task) for task in found]
        return TaskPage(tasks=live, total_count=total, next_before=following, timestamp=timestamp(time.time()))

    def _newest(self, stored: Task) -> Task:
        entry = self._entries.get(stored.task_id)
        return stored if entry is None or entry.state.terminal else entry.record(parameters=False)

    async def output(self, task_id: str, since: int = 0, wait: float = 0.0, record: bool = False) -> TaskOutput:
        """Return the output after cursor `since`, after up to `wait` seconds for something new; `record` adds the task's record."""
        shown = await self._output(task_id, since, wait)
        return shown.model_copy(update={"task": await self.get(task_id, parameters=False)}) if record else shown

    async def _output(self, task_id: str, since: int, wait: float) -> TaskOutput:
        """What it showed after cursor `since`; with `wait`, up to that many seconds for something new."""
        entry = self.find(task_id)
        if entry is None:
            return await self._others_output(task_id, since, wait)
        ends = time.monotonic() + wait
        while True:
            items, following = entry.output.read(since)
            left = ends - time.monotonic()
            if items or left <= 0 or entry.over:
                return TaskOutput.model_construct(
                    task_id=task_id, items=items, next=following, truncated=entry.output.truncated, finished=entry.over
                )
            news = entry.news = entry.news or asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), left)

    async def _others_output(self, task_id: str, since: int, wait: float) -> TaskOutput:
        """What is on disk of a task that ended, or that another runtime runs, which tells us of no news."""
        ends = time.monotonic() + wait
        while True:
            task = await self.get(task_id)
            stored = await self._history.get_output(task_id) or TaskOutput(task_id=task_id, items=[], next=0)
            if stored.items[since:] or task.status.terminal or time.monotonic() >= ends:
                return stored.model_copy(update={"items": stored.items[since:], "finished": task.status.terminal})
            await asyncio.sleep(OTHERS_POLL)

    async def tokens(self, task_id: str, since: int = 0) -> AsyncIterator[TokenPiece]:
        """The text that a model writes for it, after `since` characters, until it ends; raises `TaskNotFound`."""
        entry = self.find(task_id)
        if entry is not None and entry.tokens is not None:
            async for piece in entry.tokens.read(since):
                yield piece
            return
        task = await self.wait(task_id, parameters=False)
        if task.result is not None:
            text = str(task.result.output.get("text") or "")
        else:
            output = await self.output(task_id)
            text = "".join(item.text or "" for item in output.items if item.name == "stdout")
        if text[since:]:
            yield TokenPiece(since, text[since:])

    async def payload(self, task_id: str) -> tuple[bytes | Path, str]:
        """The opaque result and its encoding; raises `TaskNotFound` where there is none."""
        task = await self.get(task_id)
        found = await self._history.get_payload(task_id)
        if found is None:
            why = "gave none" if task.status is TaskState.COMPLETED else f"is {task.status}"
            raise TaskNotFound(f"There is no payload of {task_id}: it {why}, or the payload is older than what is kept.")
        return found

    def close(self) -> None:
        """Publish what is left."""
        self.tell_states()
        if self._timer is not None:
            self._timer.cancel()
            self._tell_output()


def _news(entry: Entry, state: TaskState) -> TaskNews | None:
    """What is told of that state; None once it has another, which may not be on disk yet, and is told when it is."""
    return entry.news_item() if entry.state is state else None
