"""Handlers that submit, list, inspect, reprioritise, cancel and delete tasks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

from jupyter_server.utils import url_path_join

from openruntime_jupyter.operations.parameter_summary import summarized
from openruntime_jupyter.schemas.endpoints import (
    CANCEL_TASK,
    CHANGE_TASK,
    GET_OUTPUT,
    GET_PAYLOAD,
    GET_TASK,
    LIST_TASKS,
    LIST_TASKS_ENHANCED,
    SUBMIT_FOLLOWED,
    SUBMIT_TASK,
)
from openruntime_jupyter.schemas.queries import DeleteQuery, OutputQuery, PageQuery, TaskQuery, TasksQuery, WaitQuery
from openruntime_jupyter.schemas.tasks import TaskChange, TaskRequest
from openruntime_jupyter.server.http.base import Handler, WaitingMixin, serves
from openruntime_jupyter.server.http.requests import read_key, read_preference


class TasksHandler(WaitingMixin):
    """Handler of `/tasks`."""

    @serves(LIST_TASKS)
    async def get(self) -> None:
        """List tasks page by page with filters: newest first, or pending tasks in the order in which they will run."""
        query = self.query(TasksQuery)
        runtime = await self.runtime()
        self.reply(await runtime.list_tasks(query))

    @serves(SUBMIT_TASK)
    async def post(self) -> None:
        """Submit a task, and wait for its result or run it asynchronously.

        By default, the response is sent when the task has finished, and the task is cancelled if the client disconnects. With
        `"wait": false` in the body, or the header `Prefer`, the task is asynchronous: it is on disk before the response, and continues
        if the client disconnects or the server restarts.
        """
        request = await self.body(TaskRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        preference = read_preference(self.request.headers.get_list("Prefer"))
        runtime = await self.runtime()
        caller = await self.caller(request.operation)
        if preference.applied is not None:
            request = request.model_copy(update={"wait": False})
        task_id = await runtime.submission.submit(request, caller, key, large=self.is_large)
        # Parameters are omitted: the client has them, and they may be large.
        if request.wait:
            self.reply(await self.while_wanted(runtime, task_id, runtime.tasks.wait(task_id, parameters=False)))
        elif preference.wait:
            self.reply_accepted(await self.while_connected(runtime.tasks.wait(task_id, preference.wait, parameters=False)), preference)
        else:
            self.reply_accepted(await runtime.tasks.get(task_id, parameters=False), preference)


class FollowedTaskHandler(Handler):
    """Handler of `/tasks/output`."""

    @serves(SUBMIT_FOLLOWED)
    async def post(self) -> None:
        """Submit an asynchronous task, and return its output within `wait` seconds and its record.

        The response is that of `GET /tasks/{id}/output` with `record=true`, which returns later output. For a short task, this saves a
        request. `wait` in the body is ignored.
        """
        request = (await self.body(TaskRequest)).model_copy(update={"wait": False})
        query = self.query(WaitQuery)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        runtime = await self.runtime()
        task_id = await runtime.submission.submit(request, await self.caller(request.operation), key, large=self.is_large)
        output = await self.while_connected(runtime.tasks.output(task_id, 0, query.wait, record=True))
        self.reply(output, 202, {"Location": url_path_join(self.services.options.url_path, "tasks", task_id)})


class EnhancedTasksHandler(Handler):
    """Handler of `GET /tasks/enhanced`, as defined by the reference."""

    @serves(LIST_TASKS_ENHANCED)
    async def get(self) -> None:
        """List tasks with performance metrics, newest first."""
        query = self.query(PageQuery)
        runtime = await self.runtime()
        self.reply(await runtime.list_tasks(TasksQuery(**query.model_dump())))


class TaskHandler(Handler):
    """Handler of `/tasks/{id}`."""

    @serves(GET_TASK)
    async def get(self, task_id: str) -> None:
        """Return the task, after waiting up to `wait` seconds for it to finish.

        `summary` describes its parameters for people; the complete ones may have megabytes and environment variables.
        """
        query = self.query(TaskQuery)
        runtime = await self.runtime()
        task = await runtime.tasks.get(task_id, query.parameters)
        if query.wait and not task.status.terminal:
            task = await self.while_connected(runtime.tasks.wait(task_id, query.wait, query.parameters))
        self.reply(summarized(task) if query.summary else task)

    @serves(CHANGE_TASK)
    async def patch(self, task_id: str) -> None:
        """Change the priority of a pending task."""
        change = await self.body(TaskChange)
        runtime = await self.runtime()
        await self.reply_changed(await runtime.reprioritise(task_id, change.priority))

    @serves(CANCEL_TASK)
    async def delete(self, task_id: str) -> None:
        """Cancel the task, or delete it with `purge=true`, and return it."""
        query = self.query(DeleteQuery)
        runtime = await self.runtime()
        if query.purge:
            task = await runtime.tasks.get(task_id)
            await runtime.purge(task_id)
        else:
            task = await runtime.cancel(task_id)
        await self.reply_changed(task)


CHUNK = 1_048_576


class OutputHandler(Handler):
    """Handler of `GET /tasks/{id}/output`."""

    @serves(GET_OUTPUT)
    async def get(self, task_id: str) -> None:
        """Return the output of the task after `since`. With `wait`, wait for new output."""
        query = self.query(OutputQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.tasks.output(task_id, query.since, query.wait, query.record)))


class PayloadHandler(Handler):
    """Handler of `GET /tasks/{id}/payload`."""

    @serves(GET_PAYLOAD)
    async def get(self, task_id: str) -> None:
        """Return the bytes of the opaque result. The task's result has their encoding."""
        runtime = await self.runtime()
        payload, encoding = await runtime.tasks.payload(task_id)
        self.set_header("X-OpenRuntime-Encoding", encoding)
        self.set_header("Content-Disposition", f'attachment; filename="{task_id}"')
        if isinstance(payload, Path):
            await self._send(payload)
            self.finish(set_content_type="application/octet-stream")
        else:
            self.finish(payload, set_content_type="application/octet-stream")

    async def _send(self, path: Path) -> None:
        """Send a file in chunks at the speed of the client, reading it on a thread."""
        with await asyncio.to_thread(path.open, "rb") as file:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            if self.request.method == "HEAD":
                await self.flush()
                return
            while chunk := await asyncio.to_thread(_read, file):
                await self.write_chunk(chunk)


def _read(file: BinaryIO) -> bytes:
    return file.read(CHUNK)
