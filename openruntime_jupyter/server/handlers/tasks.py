"""Tasks: submit, list, look, reprioritise, cancel, erase."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jupyter_server.auth.decorator import authorized
from jupyter_server.utils import url_path_join
from tornado import web

from openruntime_jupyter.schemas.tasks import Task, TaskChange, TaskOutput, TaskPage, TaskRequest
from openruntime_jupyter.server.handlers.waiting import APPLIED, LOCATION, PREFER, WaitingMixin
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.http.requests import (
    DeleteQuery,
    OutputQuery,
    PageQuery,
    Preference,
    TaskQuery,
    TasksQuery,
    WaitQuery,
    read_key,
    read_preference,
)
from openruntime_jupyter.server.openapi.decorator import BYTES, IDEMPOTENCY_KEY, Answer, Parameter, described

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

SUBMITTED = {
    200: Answer(Task, "The task has ended; it may have failed: see `status`.", headers=(APPLIED,)),
    202: Answer(Task, "The task is on disk and goes on by itself.", headers=(APPLIED, LOCATION)),
}
EXAMPLES = {
    "Multiply matrices": {"operation": "matrix_multiply", "parameters": {"size": 1000, "iterations": 10}, "priority": 5},
    "An expression, without waiting": {
        "operation": "compute",
        "parameters": {"expression": "sum(a * 2)", "inputs": {"a": [1, 2]}},
        "wait": False,
    },
    "Code, which needs a login": {"operation": "python", "parameters": {"code": "print(6 * 7)"}, "timeout": 60},
}


class TasksHandler(WaitingMixin):
    """`/tasks`."""

    @described("Tasks", TaskPage, query=TasksQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Tasks, newest first, filtered and paged; or those that wait, the next to run first."""
        query = self.query(TasksQuery)
        runtime = await self.runtime()
        self.reply(await runtime.list_tasks(query.limit, query.before, query.offset, query.state, query.operation, query.owner, query.order))

    @described("Tasks", SUBMITTED, body=TaskRequest, headers=(PREFER, IDEMPOTENCY_KEY), examples=EXAMPLES)
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Submit a task, and wait for it as long as its client wants to.

        As it is, the answer comes when the task has ended, and a client that goes away cancels it. With `"wait": false` in the body,
        or the header `Prefer`, the task is asynchronous: on disk before the answer, and going on whatever becomes of client and server.
        """
        request = self.body(TaskRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        preference = read_preference(self.request.headers.get_list("Prefer"))
        runtime = await self.runtime()
        caller = await self.caller(request.operation)
        if preference.applied is not None:
            self.set_header("Preference-Applied", preference.applied)
            request = request.model_copy(update={"wait": False})
        task_id = await runtime.submission.submit(request, caller, key)
        # Its client has the parameters, which may be megabytes.
        if request.wait:
            self.reply(await self.while_wanted(runtime, task_id, runtime.tasks.wait(task_id, parameters=False)))
        else:
            await self._accepted(runtime, task_id, preference)

    async def _accepted(self, runtime: Runtime, task_id: str, preference: Preference) -> None:
        """202 for what goes on by itself; 200 if it ended within the time that its client grants."""
        if preference.wait:
            task = await self.while_connected(runtime.tasks.wait(task_id, preference.wait, parameters=False))
        else:
            task = await runtime.tasks.get(task_id, parameters=False)
        if preference.wait is not None and task.status.terminal:
            self.reply(task)
        else:
            self.reply(task, 202, {"Location": url_path_join(self.app.url_path, "tasks", task.task_id)})


class FollowedTaskHandler(Handler):
    """`/tasks/output`."""

    @described("Tasks", {202: TaskOutput}, body=TaskRequest, query=WaitQuery, headers=(IDEMPOTENCY_KEY,), examples=EXAMPLES)
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Submit an asynchronous task, and return what it shows within `wait` seconds, with its record.

        The answer is that of `GET /tasks/{id}/output` with `record=true`, which goes on from there: for a short task, this saves a
        request. `wait` of the body has no effect.
        """
        request = self.body(TaskRequest).model_copy(update={"wait": False})
        query = self.query(WaitQuery)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        runtime = await self.runtime()
        task_id = await runtime.submission.submit(request, await self.caller(request.operation), key)
        shown = await self.while_connected(runtime.tasks.output(task_id, 0, query.wait, record=True))
        self.reply(shown, 202, {"Location": url_path_join(self.app.url_path, "tasks", task_id)})


class EnhancedTasksHandler(Handler):
    """`GET /tasks/enhanced`, as the reference has it."""

    @described("Tasks", TaskPage, query=PageQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Tasks, newest first, each with its performance figures."""
        query = self.query(PageQuery)
        runtime = await self.runtime()
        self.reply(await runtime.list_tasks(query.limit, query.before, query.offset))


class TaskHandler(Handler):
    """`/tasks/{id}`."""

    @described("Tasks", Task, query=TaskQuery)
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """The task, at its end if that comes within `wait` seconds."""
        query = self.query(TaskQuery)
        runtime = await self.runtime()
        task = await runtime.tasks.get(task_id, query.parameters)
        if query.wait and not task.status.terminal:
            task = await self.while_connected(runtime.tasks.wait(task_id, query.wait, query.parameters))
        self.reply(task)

    @described("Tasks", Task, body=TaskChange, errors={409: "It does not wait any more."}, examples={"More urgent": {"priority": 9}})
    @web.authenticated
    @authorized
    async def patch(self, task_id: str) -> None:
        """Change the priority of a task that waits."""
        change = self.body(TaskChange)
        runtime = await self.runtime()
        self.reply(await runtime.reprioritise(task_id, change.priority))

    @described("Tasks", Task, query=DeleteQuery, errors={409: "It belongs to another runtime, or is to be erased and has not ended."})
    @web.authenticated
    @authorized
    async def delete(self, task_id: str) -> None:
        """Cancel the task, or with `purge=true` erase it; the answer is the task as it is, or was."""
        query = self.query(DeleteQuery)
        runtime = await self.runtime()
        if query.purge:
            task = await runtime.tasks.get(task_id)
            await runtime.purge(task_id)
        else:
            task = await runtime.cancel(task_id)
        self.reply(task)


CHUNK = 1_048_576

PAYLOAD = Answer(
    description="The bytes. A cloudpickle runs code when it is loaded: load it only if you trust the task's.",
    media={"application/octet-stream": BYTES},
    headers=(Parameter("X-OpenRuntime-Encoding", "How they are encoded."),),
)


class OutputHandler(Handler):
    """`GET /tasks/{id}/output`."""

    @described("Tasks", TaskOutput, query=OutputQuery)
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """What the task showed from `since` on; with `wait`, as soon as there is something."""
        query = self.query(OutputQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.tasks.output(task_id, query.since, query.wait, query.record)))


class PayloadHandler(Handler):
    """`GET /tasks/{id}/payload`."""

    @described("Tasks", PAYLOAD, errors={404: "There is no such task, or it has no payload."})
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """The bytes, as they are; how they are encoded stands in the task's result."""
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
        """A file piece by piece, read off the loop, no faster than the client takes it."""
        with await asyncio.to_thread(path.open, "rb") as file:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            if self.request.method == "HEAD":
                await self.flush()
                return
            while chunk := await asyncio.to_thread(_read, file):
                await self.pass_on(chunk)


def _read(file: BinaryIO) -> bytes:
    return file.read(CHUNK)
