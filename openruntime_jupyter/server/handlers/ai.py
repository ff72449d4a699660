"""Prompts: agents, workflows, AI tasks and their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jupyter_server.auth.decorator import authorized
from jupyter_server.utils import url_path_join
from tornado import web

from openruntime_jupyter.errors import InvalidRequest, TaskNotFound
from openruntime_jupyter.schemas.ai import AgentList, AiRequest, AiTask, Conversation, ConversationList, ModelList, Unloaded, WorkflowList
from openruntime_jupyter.server.handlers.waiting import APPLIED, LOCATION, PREFER, WaitingMixin
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.http.requests import ConversationsQuery, Preference, TokensQuery, read_key, read_preference
from openruntime_jupyter.server.http.sse import EVENT_STREAM, EVENTS, TokenStream
from openruntime_jupyter.server.openapi.decorator import IDEMPOTENCY_KEY, Answer, Parameter, described

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService

AI_ID = "ai_task_"
SUBMITTED = {
    200: Answer(
        AiTask,
        "The task has ended; it may have failed: see `status`. With `stream`, its text and then the task, as events.",
        media={EVENT_STREAM: EVENTS},
        headers=(APPLIED, LOCATION),
    ),
    202: Answer(AiTask, "The task is on disk and goes on by itself.", headers=(APPLIED, LOCATION)),
}
EXAMPLES = {
    "The reference's": {
        "workflow_type": "code_generation",
        "prompt": "Create a Python function to calculate fibonacci numbers",
        "parameters": {"language": "python", "style": "functional"},
        "timeout": 30,
    },
    "The prompt as it is, word by word": {
        "workflow_type": "model_inference",
        "prompt": "What is the capital of France?",
        "parameters": {"profile": "local", "max_tokens": 64, "temperature": 0},
        "stream": True,
    },
    "What this server was busy with": {
        "workflow_type": "system_analysis",
        "prompt": "Why did my tasks wait?",
        "parameters": {"timeframe": "6h", "conversation": "waiting"},
    },
    "Better settings": {
        "workflow_type": "optimization",
        "prompt": "Many short tasks, few long ones.",
        "parameters": {"target": "settings"},
    },
}
CONFLICT = "It was asynchronous, and its conversation still waits for an answer."
NOBODY = "Not now: there is no model that answers, the server starts or stops, the queue is full, the history cannot be written."
LAST_EVENT = Parameter("Last-Event-ID", "The `id` of the last event that was got, in place of `since`.")


class AgentsHandler(Handler):
    """`GET /ai/agents`."""

    @described("AI", AgentList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The agents: roles whose instructions a model can be given."""
        service = await self.ai()
        self.reply(service.agents.all())


class WorkflowsHandler(Handler):
    """`GET /ai/workflows`."""

    @described("AI", WorkflowList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """What an AI task can be for, each with its agent, its context and the schema of its parameters."""
        from openruntime_jupyter.ai.workflows import workflows

        self.reply(workflows())


class AiTasksHandler(WaitingMixin, TokenStream):
    """`POST /ai/tasks`."""

    @described(
        "AI",
        SUBMITTED,
        body=AiRequest,
        headers=(PREFER, IDEMPOTENCY_KEY),
        examples=EXAMPLES,
        errors={409: CONFLICT, 503: NOBODY},
    )
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Ask a model, and wait for its answer as long as the client wants to.

        As it is, the answer comes when the task has ended, and a client that goes away cancels it. With `"stream": true` the text comes
        as server-sent events while it is written. With `"wait": false` in the body, or the header `Prefer`, the task is asynchronous: on
        disk before the answer, and going on whatever becomes of client and server; `GET /tasks/{task_id}/tokens` streams it then.
        """
        request = self.body(AiRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        preference = read_preference(self.request.headers.get_list("Prefer"))
        if preference.applied is not None:
            request = request.model_copy(update={"wait": False})
        if request.stream and not request.wait:
            raise InvalidRequest.of("stream", "who does not wait is not streamed to: leave it away, and read GET /tasks/{task_id}/tokens")
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
        """202 for what goes on by itself; 200 if it ended within the time that its client grants."""
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
    """`GET /tasks/{id}/tokens`."""

    @described(
        "AI", {200: Answer(None, "Its text, and then the task.", media={EVENT_STREAM: EVENTS})}, query=TokensQuery, headers=(LAST_EVENT,)
    )
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """The text of an AI task as it is written, from `since` on, and the task at its end; also of one that has ended."""
        query = self.query(TokensQuery)
        service = await self.ai()
        await service.runtime.tasks.get(task_id, parameters=False)
        if not task_id.startswith(AI_ID):
            raise TaskNotFound(f"{task_id} is no AI task: GET /tasks/{task_id}/output tells what it shows")
        last = self.request.headers.get("Last-Event-ID", "")
        since = int(last) if last.isdecimal() and len(last) < 16 else query.since
        await self.while_connected(self.stream(service, task_id, since))


class ModelsHandler(Handler):
    """`GET /models`."""

    @described("AI", ModelList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The models that can be asked, and which of them are in memory."""
        service = await self.ai()
        self.reply(service.models(await self.caller()))


class ModelHandler(Handler):
    """`DELETE /models/{name}`."""

    @described("AI", Unloaded, errors={404: "No such model is in memory.", 409: "It answers a prompt now."})
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Unload a model that is in memory and idle; its memory is free when the answer comes."""
        service = await self.ai()
        self.reply(Unloaded(unloaded=await service.runtime.unload(name)))


class ConversationsHandler(Handler):
    """`GET /ai/conversations`."""

    @described("AI", ConversationList, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Conversations, the last used first: everybody's, or those of one user."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        found = await service.conversations.all(query.owner, everybody=query.owner is None)
        self.reply(ConversationList(conversations=found))


class ConversationHandler(Handler):
    """`/ai/conversations/{name}`."""

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        """A conversation of the caller's own, or of `owner`: its answered prompts, in their order."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.get(query.owner or (await self.caller()).owner, name))

    @described("AI", Conversation, query=ConversationsQuery)
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Erase a conversation of the caller's own, or of `owner`; the answer is what it was. Its tasks stay in the history."""
        query = self.query(ConversationsQuery)
        service = await self.ai()
        self.reply(await service.conversations.delete(query.owner or (await self.caller()).owner, name))
