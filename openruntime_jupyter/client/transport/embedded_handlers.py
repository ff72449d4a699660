"""Handlers of the embedded runtime, one for each endpoint that clients use. They run on the runtime's event loop."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.arrays.array_layout import check_bounds
from openruntime_jupyter.imports import load
from openruntime_jupyter.operations.parameter_summary import summarized
from openruntime_jupyter.operations.registry import describe_operations
from openruntime_jupyter.runtime.arrays.upload import Upload
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.ai import AiTask
from openruntime_jupyter.schemas.arrays import ArrayInfo
from openruntime_jupyter.schemas.endpoints import Endpoint
from openruntime_jupyter.schemas.insights import Insights
from openruntime_jupyter.schemas.tasks import Task, TaskOutput

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.arrays.store import ArrayStore
    from openruntime_jupyter.runtime.runtime import Caller, Runtime

Result = TypeVar("Result")


@dataclass(frozen=True)
class Call:
    """Call of an endpoint: the runtime's service, the validated query and body, the idempotency key, and the wait in seconds."""

    service: AiService
    query: Any
    body: Any
    key: str | None
    wait: float

    @property
    def runtime(self) -> Runtime:
        """Return the runtime."""
        return self.service.runtime


Handler = Callable[..., Any]
HANDLERS: dict[Endpoint[Any], Handler] = {}
"""Handlers by endpoint. They get a `Call` and the ids of the path, and return the endpoint's result or an awaitable of it."""


def _handle(endpoint: Endpoint[Result], handler: Callable[..., Result | Awaitable[Result]]) -> None:
    HANDLERS[endpoint] = handler


def caller() -> Caller:
    """Return the user of this process as the caller of the runtime."""
    from openruntime_jupyter.runtime.runtime import Caller

    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        owner = f"user {os.getuid()}"
    return Caller(owner=owner)


async def _submit(call: Call) -> str:
    return await call.runtime.submission.submit(call.body.model_copy(update={"wait": False}), caller(), call.key)


async def _submit_task(call: Call) -> Task:
    task_id, tasks = await _submit(call), call.runtime.tasks
    return await (tasks.wait(task_id, call.wait, parameters=False) if call.wait else tasks.get(task_id, parameters=False))


async def _submit_followed(call: Call) -> TaskOutput:
    return await call.runtime.tasks.output(await _submit(call), 0, call.wait, record=True)


async def _get_task(call: Call, task_id: str) -> Task:
    query, tasks = call.query, call.runtime.tasks
    task = await (tasks.wait(task_id, call.wait, query.parameters) if call.wait else tasks.get(task_id, query.parameters))
    return summarized(task) if query.summary else task


async def _delete_task(call: Call, task_id: str) -> Task:
    if not call.query.purge:
        return await call.runtime.cancel(task_id)
    task = await call.runtime.tasks.get(task_id)
    await call.runtime.purge(task_id)
    return task


async def _get_payload(call: Call, task_id: str) -> bytes:
    data, _ = await call.runtime.tasks.payload(task_id)
    return await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data


async def store_array(store: ArrayStore, array_id: str, pieces: Iterable[bytes]) -> ArrayInfo:
    """Store the safetensors file in `pieces` as an array."""
    upload = Upload(store, array_id, caller().owner)
    try:
        for piece in pieces:
            await upload.write(piece)
        return await upload.finish()
    finally:
        await upload.abandon()


async def _delete_array(call: Call, array_id: str) -> Any:
    info = await call.runtime.arrays.info(array_id)
    await call.runtime.arrays.remove(array_id)
    return info


async def _submit_prompt(call: Call) -> AiTask:
    request = call.body.model_copy(update={"wait": False, "stream": False})
    return await call.service.get(await call.service.submit(request, caller(), call.key), call.wait)


async def _analyse_history(call: Call) -> Insights:
    # Imported on a thread, because importing NumPy is slow.
    report = await asyncio.to_thread(load, "openruntime_jupyter.ai.insights.report")
    found: Insights = await report.insights(call.runtime, call.body, await call.service.rewriters(caller()))
    return found


def _list_workflows(_: Call) -> Any:
    from openruntime_jupyter.ai.workflows import workflows

    return workflows().workflows


_handle(api.GET_HEALTH, lambda call: call.runtime.health())
_handle(api.GET_METRICS, lambda call: call.runtime.system_metrics())
_handle(api.GET_METRICS_HISTORY, lambda call: call.runtime.metrics_service.history(call.query.timeframe, call.query.points))
_handle(api.LIST_DEVICES, lambda call: call.runtime.devices())
_handle(api.LIST_HOSTS, lambda call: call.runtime.hosts())
_handle(api.LIST_WORKERS, lambda call: call.runtime.worker_stats.report())
_handle(api.LIST_OPERATIONS, lambda _: describe_operations())
_handle(api.LIST_TASKS, lambda call: call.runtime.list_tasks(call.query))
_handle(api.SUBMIT_TASK, _submit_task)
_handle(api.SUBMIT_FOLLOWED, _submit_followed)
_handle(api.SUBMIT_BATCH, lambda call: call.runtime.batches.submit(call.body.tasks, caller(), call.key, durable=call.body.durable))
_handle(api.COLLECT_RESULTS, lambda call: call.runtime.results.collect(call.body.tasks, call.body.at_least, call.wait))
_handle(api.GET_TASK, _get_task)
_handle(api.CANCEL_TASK, _delete_task)
_handle(api.CHANGE_TASK, lambda call, task_id: call.runtime.reprioritise(task_id, call.body.priority))
_handle(api.GET_OUTPUT, lambda call, task_id: call.runtime.tasks.output(task_id, call.query.since, call.wait, call.query.record))
_handle(api.GET_PAYLOAD, _get_payload)
_handle(api.LIST_ARRAYS, lambda call: call.runtime.arrays.page())
_handle(
    api.ALLOCATE_ARRAY,
    lambda call: call.runtime.arrays.allocate(check_bounds(call.body.shape, call.body.dtype, call.body.kind), caller().owner),
)
_handle(api.GET_ARRAY, lambda call, array_id: call.runtime.arrays.info(array_id))
_handle(api.DELETE_ARRAY, _delete_array)
_handle(api.MARK_ARRAY_READY, lambda call, array_id: call.runtime.arrays.ready(array_id))
_handle(api.LIST_SESSIONS, lambda call: call.runtime.sessions.list())
_handle(api.FREE_SESSION, lambda call, session_id: call.runtime.sessions.free(session_id))
_handle(api.RESTART_SESSION, lambda call, session_id: call.runtime.sessions.restart(session_id))
_handle(api.LIST_AGENTS, lambda call: call.service.agents.all())
_handle(api.LIST_WORKFLOWS, _list_workflows)
_handle(api.SUBMIT_PROMPT, _submit_prompt)
_handle(api.ANALYSE_HISTORY, _analyse_history)
_handle(api.LIST_CONVERSATIONS, lambda call: call.service.conversations.all(call.query.owner, everybody=call.query.owner is None))
_handle(api.GET_CONVERSATION, lambda call, name: call.service.conversations.get(call.query.owner or caller().owner, name))
_handle(api.DELETE_CONVERSATION, lambda call, name: call.service.conversations.delete(call.query.owner or caller().owner, name))
_handle(api.LIST_MODELS, lambda call: call.service.models(caller()))
_handle(api.UNLOAD_MODEL, lambda call, name: call.runtime.unload(name))
