"""Handlers of agents, workflows, AI tasks, models, conversations and insights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json

from openruntime_jupyter.errors import InvalidRequest, TaskNotFound
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.ai import AiRequest, ConversationList, ReasoningEvent, TokenEvent, ToolCallEvent, Unloaded
from openruntime_jupyter.schemas.insights import Insights, InsightsRequest
from openruntime_jupyter.schemas.queries import ConversationsQuery, TokensQuery
from openruntime_jupyter.schemas.values import ReasoningPiece, TokenPiece, ToolCallPiece
from openruntime_jupyter.server.http.base import Handler, WaitingMixin, serves
from openruntime_jupyter.server.http.requests import read_key, read_preference

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService
    from openruntime_jupyter.runtime.runtime import Runtime

AI_ID = "ai_task_"

HEARTBEAT_SECONDS = 10.0
"""Seconds between heartbeats. Many proxies close connections that are idle for longer."""
HEARTBEAT = b": heartbeat\n\n"

Item = TypeVar("Item")


def event(name: str, data: Any, number: int | None = None) -> bytes:
    """Return an encoded event. JSON has no line breaks, so `data` is a single line."""
    head = f"event: {name}\n" if number is None else f"event: {name}\nid: {number}\n"
    return head.encode() + b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


async def with_pauses(items: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item | None]:
    """Yield the items, and None whenever there was no item for `seconds`."""
    coming: asyncio.Future[Item] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items))
            await asyncio.wait({coming}, timeout=seconds)
            if not coming.done():
                yield None
                continue
            done, coming = coming, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()


def _event_of(piece: TokenPiece | ReasoningPiece | ToolCallPiece) -> bytes:
    """Return the event of a piece of a response."""
    if isinstance(piece, TokenPiece):
        return event("token", TokenEvent(text=piece.text, index=piece.index), piece.index + len(piece.text))
    if isinstance(piece, ReasoningPiece):
        return event("reasoning", ReasoningEvent(text=piece.text, index=piece.index))
    return event("tool_call", ToolCallEvent(index=piece.index, id=piece.id, name=piece.name, arguments=piece.arguments))


class TokenStream(Handler):
    """Base class of handlers that respond with server-sent events."""

    async def stream(self, service: AiService, task_id: str, since: int = 0) -> None:
        """Send the text after `since` characters, reasoning and tool calls while they are generated, then the finished task."""
        self.set_header("Content-Type", api.EVENT_STREAM)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # prevents buffering by nginx
        # Send the headers immediately, so that the client sees that the request was accepted.
        await self.write_chunk()
        if self.request.method == "HEAD":
            self.finish(set_content_type=api.EVENT_STREAM)
            return
        async for chunk in with_pauses(service.runtime.tasks.tokens(task_id, since), HEARTBEAT_SECONDS):
            await self.write_chunk(HEARTBEAT if chunk is None else _event_of(chunk))
        self.write(event("task", await service.get(task_id, None)))
        self.finish(set_content_type=api.EVENT_STREAM)


class AgentsHandler(Handler):
    """Handler of `GET /ai/agents`."""

    @serves(api.LIST_AGENTS)
    async def get(self) -> None:
        """List the agents: roles with instructions for the model."""
        service = await self.ai()
        self.reply(service.agents.all())


class WorkflowsHandler(Handler):
    """Handler of `GET /ai/workflows`."""

    @serves(api.LIST_WORKFLOWS)
    async def get(self) -> None:
        """List the workflows with agent, context and the schema of their parameters."""
        from openruntime_jupyter.ai.workflows import workflows

        self.reply(workflows())


class AiTasksHandler(WaitingMixin, TokenStream):
    """Handler of `POST /ai/tasks`."""

    @serves(api.SUBMIT_PROMPT)
    async def post(self) -> None:
        """Send a prompt to a model, and wait for the response or submit it asynchronously.

        By default, the response is sent when the task has finished, and the task is cancelled if the client disconnects. With
        `"stream": true`, the text is sent as server-sent events while the model generates it. With `"wait": false` in the body, or the
        header `Prefer`, the task is asynchronous: it is on disk before the response, and continues if the client disconnects or the
        server restarts. `GET /tasks/{task_id}/tokens` streams its text.
        """
        request = await self.body(AiRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        preference = read_preference(self.request.headers.get_list("Prefer"))
        if preference.applied is not None:
            request = request.model_copy(update={"wait": False})
        if request.stream and not request.wait:
            raise InvalidRequest.of("stream", "requires wait: omit it, and use GET /tasks/{task_id}/tokens to stream an asynchronous task")
        service = await self.ai()
        caller = await self.caller()
        if not request.wait:
            task_id = await service.submit(request, caller, key)
            self.reply_accepted(await self.while_connected(service.get(task_id, preference.wait or 0.0)), preference)
            return
        task_id = await self.while_connected(service.submit(request, caller, key))
        if request.stream:
            self.locate(task_id)
            await self.while_wanted(service.runtime, task_id, self.stream(service, task_id))
        else:
            self.reply(await self.while_wanted(service.runtime, task_id, service.get(task_id, None)))


class TokensHandler(TokenStream):
    """Handler of `GET /tasks/{id}/tokens`."""

    @serves(api.STREAM_TOKENS)
    async def get(self, task_id: str) -> None:
        """Stream the text of a running or finished AI task after `since`, and then the finished task."""
        query = self.query(TokensQuery)
        service = await self.ai()
        await service.runtime.tasks.get(task_id, parameters=False)
        if not task_id.startswith(AI_ID):
            raise TaskNotFound(f"{task_id!r} is not an AI task: use GET /tasks/{task_id}/output for its output")
        last = self.request.headers.get("Last-Event-ID", "")
        since = int(last) if last.isdecimal() and len(last) < 16 else query.since
        await self.while_connected(self.stream(service, task_id, since))


class ModelsHandler(Handler):
    """Handler of `GET /models`."""

    @serves(api.LIST_MODELS)
    async def get(self) -> None:
        """List the available models, and the workers that keep them in memory."""
        service = await self.ai()
        self.reply(await service.models(await self.caller()))


class ModelHandler(Handler):
    """Handler of `DELETE /models/{name}`."""

    @serves(api.UNLOAD_MODEL)
    async def delete(self, name: str) -> None:
        """Unload an idle model from memory. The memory is free when the response is sent."""
        service = await self.ai()
        self.reply(Unloaded(unloaded=await service.runtime.unload(name)))


class ConversationsHandler(Handler):
    """Handler of `GET /ai/conversations`."""

    @serves(api.LIST_CONVERSATIONS)
    async def get(self) -> None:
        """List the conversations of all users or of one user, most recently used first."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        found = await service.conversations.all(query.owner, everybody=query.owner is None)
        self.reply(ConversationList(conversations=found))


class ConversationHandler(Handler):
    """Handler of `/ai/conversations/{name}`."""

    @serves(api.GET_CONVERSATION)
    async def get(self, name: str) -> None:
        """Return a conversation of the caller or of `owner` with its prompts and responses in order."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.get(query.owner or (await self.caller()).owner, name))

    @serves(api.DELETE_CONVERSATION)
    async def delete(self, name: str) -> None:
        """Delete a conversation of the caller or of `owner`, and return it. Its tasks stay in the history."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        await self.reply_changed(await service.conversations.delete(query.owner or (await self.caller()).owner, name))


class InsightsHandler(Handler):
    """Handler of `POST /ai/insights`."""

    @serves(api.ANALYSE_HISTORY)
    async def post(self) -> None:
        """Analyse the recorded history for performance, memory, efficiency or errors.

        Findings are peaks, trends, leaks, bursts of failures, queueing and more, with numbers, times and the tasks that ran at the time.
        They are computed from recorded data. A model may rewrite the text but adds no information: texts with missing or additional
        numbers are rejected.
        """
        request = await self.body(InsightsRequest)
        runtime = await self.runtime()
        self.reply(await self.while_connected(self._insights(runtime, request)))

    async def _insights(self, runtime: Runtime, request: InsightsRequest) -> Insights:
        choose = await (await self.ai()).rewriters(await self.caller())
        # Imported on a thread at the first request, because most servers get none and NumPy is slow to import.
        answer = await asyncio.to_thread(import_module, "openruntime_jupyter.ai.insights.report")
        found: Insights = await answer.insights(runtime, request, choose)
        return found
