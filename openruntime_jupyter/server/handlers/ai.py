"""Handlers of agents, workflows, AI tasks, models and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jupyter_server.auth.decorator import authorized
from jupyter_server.utils import url_path_join
from tornado import web

from openruntime_jupyter.errors import InvalidRequest, TaskNotFound
from openruntime_jupyter.schemas.ai import AgentList, AiRequest, AiTask, Conversation, ConversationList, ModelList, Unloaded, WorkflowList
from openruntime_jupyter.server.http.base import APPLIED, LOCATION, PREFER, Handler, WaitingMixin
from openruntime_jupyter.server.http.requests import ConversationsQuery, Preference, TokensQuery, read_key, read_preference
from openruntime_jupyter.server.http.sse import EVENT_STREAM, EVENTS, TokenStream
from openruntime_jupyter.server.openapi.decorator import IDEMPOTENCY_KEY, Parameter, Response, described

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService

AI_ID = "ai_task_"
SUBMITTED = {
    200: Response(
        AiTask,
        "The task has finished, possibly with a failure; see `status`. With `stream`, events with the text and then the task.",
        media={EVENT_STREAM: EVENTS},
        headers=(APPLIED, LOCATION),
    ),
    202: Response(AiTask, "The task is stored on disk and runs asynchronously.", headers=(APPLIED, LOCATION)),
}
EXAMPLES = {
    "Code generation": {
        "workflow_type": "code_generation",
        "prompt": "Create a Python function to calculate fibonacci numbers",
        "parameters": {"language": "python", "style": "functional"},
        "timeout": 30,
    },
    "Plain prompt, streamed": {
        "workflow_type": "model_inference",
        "prompt": "What is the capital of France?",
        "parameters": {"profile": "local", "max_tokens": 64, "temperature": 0},
        "stream": True,
    },
    "Analysis of the server's history": {
        "workflow_type": "system_analysis",
        "prompt": "Why did my tasks wait?",
        "parameters": {"timeframe": "6h", "conversation": "waiting"},
    },
    "Optimization of settings": {
        "workflow_type": "optimization",
        "prompt": "Many short tasks, few long ones.",
        "parameters": {"target": "settings"},
    },
}
CONFLICT = "The task is asynchronous, and the conversation still has a pending prompt."
UNAVAILABLE = (
    "Temporarily unavailable: no model can be used, the server is starting or stopping, the queue is full, or the history cannot be "
    "written."
)
LAST_EVENT = Parameter("Last-Event-ID", "The `id` of the last received event, instead of `since`.")


class AgentsHandler(Handler):
    """Handler of `GET /ai/agents`."""

    @described("AI", AgentList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the agents: roles with instructions for the model."""
        service = await self.ai()
        self.reply(service.agents.all())


class WorkflowsHandler(Handler):
    """Handler of `GET /ai/workflows`."""

    @described("AI", WorkflowList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the workflows with agent, context and the schema of their parameters."""
        from openruntime_jupyter.ai.workflows import workflows

        self.reply(workflows())


class AiTasksHandler(WaitingMixin, TokenStream):
    """Handler of `POST /ai/tasks`."""

    @described(
        "AI",
        SUBMITTED,
        body=AiRequest,
        headers=(PREFER, IDEMPOTENCY_KEY),
        examples=EXAMPLES,
        errors={409: CONFLICT, 503: UNAVAILABLE},
    )
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Send a prompt to a model, and wait for the response or submit it asynchronously.

        By default, the response is sent when the task has finished, and the task is cancelled if the client disconnects. With
        `"stream": true`, the text is sent as server-sent events while the model generates it. With `"wait": false` in the body, or the
        header `Prefer`, the task is asynchronous: it is on disk before the response, and continues if the client disconnects or the
        server restarts. `GET /tasks/{task_id}/tokens` streams its text.
        """
        request = self.body(AiRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        preference = read_preference(self.request.headers.get_list("Prefer"))
        if preference.applied is not None:
            request = request.model_copy(update={"wait": False})
        if request.stream and not request.wait:
            raise InvalidRequest.of("stream", "requires wait: omit it, and use GET /tasks/{task_id}/tokens to stream an asynchronous task")
        service = await self.ai()
        caller = await self.caller()
        if not request.wait:
            await self._accepted(service, await service.submit(request, caller, key), preference)
            return
        task_id = await self.while_connected(service.submit(request, caller, key))
        if request.stream:
            self._locate(task_id)
            await self.while_wanted(service.runtime, task_id, self.stream(service, task_id))
        else:
            self.reply(await self.while_wanted(service.runtime, task_id, service.get(task_id, None)))

    async def _accepted(self, service: AiService, task_id: str, preference: Preference) -> None:
        """Respond to an asynchronous submission: 200 if the task finished within the preferred wait, otherwise 202."""
        if preference.applied is not None:
            self.set_header("Preference-Applied", preference.applied)
        task = await self.while_connected(service.get(task_id, preference.wait or 0.0))
        if preference.wait is not None and task.status.terminal:
            self.reply(task)
        else:
            self._locate(task_id)
            self.reply(task, 202)

    def _locate(self, task_id: str) -> None:
        self.set_header("Location", url_path_join(self.app.url_path, "tasks", task_id))


class TokensHandler(TokenStream):
    """Handler of `GET /tasks/{id}/tokens`."""

    @described(
        "AI",
        {200: Response(None, "Events with the text and then the task.", media={EVENT_STREAM: EVENTS})},
        query=TokensQuery,
        headers=(LAST_EVENT,),
    )
    @web.authenticated
    @authorized
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

    @described("AI", ModelList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the available models, and the workers that keep them in memory."""
        service = await self.ai()
        self.reply(service.models(await self.caller()))


class ModelHandler(Handler):
    """Handler of `DELETE /models/{name}`."""

    @described("AI", Unloaded, errors={404: "The model is not in memory.", 409: "The model is processing a prompt."})
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Unload an idle model from memory. The memory is free when the response is sent."""
        service = await self.ai()
        self.reply(Unloaded(unloaded=await service.runtime.unload(name)))


class ConversationsHandler(Handler):
    """Handler of `GET /ai/conversations`."""

    @described("AI", ConversationList, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """List the conversations of all users or of one user, most recently used first."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        found = await service.conversations.all(query.owner, everybody=query.owner is None)
        self.reply(ConversationList(conversations=found))


class ConversationHandler(Handler):
    """Handler of `/ai/conversations/{name}`."""

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        """Return a conversation of the caller or of `owner` with its prompts and responses in order."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.get(query.owner or (await self.caller()).owner, name))

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Delete a conversation of the caller or of `owner`, and return it. Its tasks stay in the history."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.delete(query.owner or (await self.caller()).owner, name))
