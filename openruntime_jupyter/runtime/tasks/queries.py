"""What may be asked of tasks: the living ones of this runtime, and all that the history holds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from openruntime_jupyter.errors import TaskNotFound
from openruntime_jupyter.runtime.events.tokens import TokenPiece
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage, TaskState

OTHERS_POLL = 0.25
"""Seconds between looks at a task that another runtime holds."""


class TaskQueries:
    """Reads; changes nothing."""

    def __init__(self, registry: TaskRegistry, history: History, scheduler: Scheduler) -> None:
        self._registry = registry
        self._history = history
        self._scheduler = scheduler

    async def wait(self, task_id: str, timeout: float | None = None, parameters: bool = True) -> Task:
        """The task when it has ended, or as it is after `timeout` seconds; raises `TaskNotFound`."""
        entry = self._registry.find(task_id)
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
        entry = self._registry.find(task_id)
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

    async def tasks(
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

    async def next_up(self, limit: int = 100, offset: int = 0) -> TaskPage:
        """Tasks that wait, by their places here; behind them those that wait in this user's other runtimes, the oldest first."""
        here = self._scheduler.pending
        tasks = [entry.record(parameters=False) for entry in self._scheduler.next_up(limit, offset)]
        others, elsewhere = await self._history.waiting_elsewhere(here, limit - len(tasks), max(0, offset - here))
        return TaskPage(tasks=[*tasks, *others], total_count=here + elsewhere, next_before=None, timestamp=timestamp(time.time()))

    def _newest(self, stored: Task) -> Task:
        entry = self._registry.entries.get(stored.task_id)
        return stored if entry is None or entry.state.terminal else entry.record(parameters=False)

    async def output(self, task_id: str, since: int = 0, wait: float = 0.0) -> TaskOutput:
        """What it showed after cursor `since`; with `wait`, up to that many seconds for something new."""
        entry = self._registry.find(task_id)
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
        entry = self._registry.find(task_id)
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
