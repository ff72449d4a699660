"""Recovery of pending tasks of dead runtimes, until they are queued here."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from openruntime_jupyter.engines import failures
from openruntime_jupyter.engines.protocol import Stage
from openruntime_jupyter.errors import InvalidRequest, Unavailable
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.submission import Caller, TaskSubmission
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.tasks import Failure, Task, TaskRequest, TaskState

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""Seconds between checks for a device to run recovered tasks."""


class Recovery:
    """Recovered tasks that are not queued yet. Use it on the runtime's event loop."""

    def __init__(self, history: History, registry: TaskRegistry, submission: TaskSubmission) -> None:
        self._history = history
        self._registry = registry
        self._submission = submission
        self._left: dict[str, Task] = {}

    async def take(self, tasks: list[Task]) -> None:
        """Queue these tasks; they stay pending until a device is found."""
        self._left.update((task.task_id, task) for task in tasks)
        waiting = [task.task_id for task in tasks]
        while waiting:
            waiting = [task_id for task_id in waiting if not await self._queue(task_id)]
            if waiting:
                await asyncio.sleep(RETRY_SECONDS)

    def write_again(self) -> None:
        """Write all recovered tasks, which a new file of the history does not have."""
        for task_id, task in self._left.items():
            self._history.write_behind(task_id, partial(Task.model_copy, task))

    async def cancel(self, task_id: str) -> bool:
        """Cancel a recovered task; return False if it is not one. Raises what `History.commit` raises; the task stays pending then."""
        return await self._end(task_id, TaskState.CANCELLED, failures.cancelled(Stage.QUEUE), cancel_stage=Stage.QUEUE.value)

    async def reprioritise(self, task_id: str, priority: int) -> bool:
        """Change the priority of a recovered task; return False if it is not one. Raises what `History.commit` raises."""
        task = self._left.get(task_id)
        if task is None:
            return False
        self._left[task_id] = changed = task.model_copy(update={"priority": priority})
        await self._history.commit(changed)
        return True

    async def _queue(self, task_id: str) -> bool:
        """Queue the task, or fail it; return False while devices are unknown."""
        task = self._left.get(task_id)
        if task is None:  # cancelled in the meantime
            return True
        try:
            await self._submission.read_models(_request(task), Caller(task.owner))
            checked = self._submission.check(_request(task), Caller(task.owner))
            if not checked.operation.inline and not await self._lanes(checked.interpreter):
                return False
            queue = await self._submission.place(checked, task.device_preference)
            task = self._left.get(task_id)
            if task is not None:
                self._submission.inherit(task, _request(task), checked, queue)
                del self._left[task_id]
        except (InvalidRequest, Unavailable, ValueError) as problem:  # written by another release
            await self._end(task_id, TaskState.FAILED, failures.not_resumed(str(problem)))
        return True

    async def _lanes(self, interpreter: str | None) -> bool:
        try:
            await self._submission.need_lanes(interpreter)
        except Unavailable as problem:
            log.warning("Recovered tasks stay pending: %s", problem)
            return False
        return True

    async def _end(self, task_id: str, state: TaskState, failure: Failure, **more: Any) -> bool:
        task = self._left.pop(task_id, None)
        if task is None:
            return False
        now = timestamp(time.time())
        changes = {"status": state, "failure": failure, "error": failure.message, "finished_at": now, "timestamp": now}
        ended = task.model_copy(update={**changes, **more})
        try:
            await self._history.commit(ended)
        except BaseException:
            self._left[task_id] = task
            raise
        self._registry.updates.ended(ended)
        return True


def _request(task: Task) -> TaskRequest:
    """Return the task's request; raise ValueError if this release rejects it."""
    return TaskRequest(
        operation=task.operation,
        parameters=task.parameters or {},
        device_preference=task.device_preference,
        priority=task.priority,
        timeout=task.timeout,
        retries=task.retries,
        name=task.name,
        memory_limit=task.memory_limit,
        session=task.session,
        origin=task.origin,
        notebook=task.notebook,
        wait=False,
    )
