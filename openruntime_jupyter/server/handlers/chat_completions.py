"""Handlers of `/v1`: chat completions and models in OpenAI's format. Each completion is a task of the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import allow_unauthenticated
from pydantic_core import to_json

from openruntime_jupyter.ai.chat_completions import Chunks, completion_of
from openruntime_jupyter.errors import InvalidRequest, ModelNotFound
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.ai import AiTask, Answer
from openruntime_jupyter.schemas.chat_completions import HEADERS, ChatCompletionRequest, CompletionHeaders, ModelEntries, ModelEntry
from openruntime_jupyter.server.handlers.ai import HEARTBEAT_SECONDS, with_pauses
from openruntime_jupyter.server.handlers.system import NotFoundHandler
from openruntime_jupyter.server.http.base import Handler, WaitingMixin, serves
from openruntime_jupyter.server.http.errors import Problem, openai_error, openai_problem, problem_of_failure
from openruntime_jupyter.server.http.requests import read_query

if TYPE_CHECKING:
    from openruntime_jupyter.ai.service import AiService

CLIENT_HEADER = "x-stainless-"
"""Prefix of the headers that OpenAI's client adds to each request."""
LAST = b"data: [DONE]\n\n"


def read_headers(headers: Mapping[str, str]) -> CompletionHeaders:
    """Return the options of the task; raises `InvalidRequest` with the name of the header."""
    try:
        return read_query(CompletionHeaders, {name: [headers[header]] for name, header in HEADERS.items() if header in headers})
    except InvalidRequest as problem:
        first = problem.details[0]
        raise InvalidRequest.of(HEADERS.get(first["field"], first["field"]), first["problem"]) from None


def event(data: Any) -> bytes:
    """Return an encoded event without a name."""
    return b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


class OpenAiHandler(Handler):
    """Base class of the handlers of `/v1`, whose errors have OpenAI's format."""

    def send_problem(self, problem: Problem) -> None:
        """Send an error as clients of OpenAI's API expect it."""
        super().send_problem(openai_problem(problem, logged_in=self.user is not None))

    def error_body(self, problem: Problem) -> dict[str, Any]:
        """Return the body of an error response."""
        return openai_error(problem)

    @allow_unauthenticated
    def options(self, *ids: str) -> None:
        """Allow the headers of OpenAI's client in addition, for pages of other origins."""
        super().options(*ids)
        asked = self.request.headers.get("Access-Control-Request-Headers", "").split(",")
        client = [name.strip() for name in asked if name.strip().lower().startswith(CLIENT_HEADER)]
        self.set_header("Access-Control-Allow-Headers", ", ".join([self._headers["Access-Control-Allow-Headers"], *client]))


class OtherPathsHandler(OpenAiHandler, NotFoundHandler):
    """Handler of all other paths below `/v1`."""


class ModelEntriesHandler(OpenAiHandler):
    """Handler of `GET /v1/models`."""

    @serves(api.LIST_MODEL_ENTRIES)
    async def get(self) -> None:
        """List the models for chat completions in OpenAI's format."""
        service = await self.ai()
        names = await service.model_names(await self.caller())
        self.reply(ModelEntries(data=[ModelEntry(id=name, owned_by=owner) for name, owner in names.items()]))


class ModelEntryHandler(OpenAiHandler):
    """Handler of `GET /v1/models/{model}`."""

    @serves(api.GET_MODEL_ENTRY)
    async def get(self, model: str) -> None:
        """Return a model for chat completions in OpenAI's format."""
        service = await self.ai()
        names = await service.model_names(await self.caller())
        if model not in names:
            raise ModelNotFound(f"Unknown model {model!r}; available: {', '.join(names) or 'none'}")
        self.reply(ModelEntry(id=model, owned_by=names[model]))


class ChatCompletionsHandler(WaitingMixin, OpenAiHandler):
    """Handler of `POST /v1/chat/completions`."""

    @serves(api.COMPLETE_CHAT)
    async def post(self) -> None:
        """Generate the response of a model to messages, in OpenAI's format.

        Each request is a task of the queue with its position, priority and history. It is cancelled if the client disconnects. With
        `"stream": true`, text, reasoning and tool calls are sent as server-sent events while the model generates them.
        """
        options = read_headers(self.request.headers)
        request = await self.body(ChatCompletionRequest)
        service = await self.ai()
        caller = await self.caller()
        task_id, model = await self.while_connected(service.complete(request, options, caller, large=self.is_large))
        self.set_header("X-Request-Id", task_id)
        respond = self._stream if request.stream else self._whole
        await self.while_wanted(service.runtime, task_id, respond(service, task_id, model, request))

    async def _whole(self, service: AiService, task_id: str, model: str, request: ChatCompletionRequest) -> None:
        answer = _outcome(await service.get(task_id, None), request)
        if isinstance(answer, Problem):
            self.send_problem(answer)
        else:
            self.reply(completion_of(task_id, model, answer))

    async def _stream(self, service: AiService, task_id: str, model: str, request: ChatCompletionRequest) -> None:
        """Send the response while it is generated. A task that fails before anything was sent has an error response."""
        chunks, begun = Chunks(task_id, model, 1 if request.parallel_tool_calls is False else None), False
        async for piece in with_pauses(service.runtime.tasks.tokens(task_id), HEARTBEAT_SECONDS):
            if not begun:
                self._begin()
                begun = True
            if piece is None:
                await self.write_chunk(_heartbeat(await service.get(task_id)))
            elif (chunk := chunks.piece(piece)) is not None:
                await self.write_chunk(event(chunk))
        answer = _outcome(await service.get(task_id, None), request)
        if isinstance(answer, Problem):
            if not begun:
                self.send_problem(answer)
                return
            self.write(event(openai_error(openai_problem(answer, logged_in=True))))
        else:
            if not begun:
                self._begin()
            usage = request.stream_options is not None and request.stream_options.include_usage
            for chunk in chunks.end(answer, usage=usage):
                self.write(event(chunk))
            self.write(LAST)
        self.finish(set_content_type=api.EVENT_STREAM)

    def _begin(self) -> None:
        self.set_header("Content-Type", api.EVENT_STREAM)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # prevents buffering by nginx


def _heartbeat(task: AiTask) -> bytes:
    """Return a comment that keeps the connection alive."""
    return b": running\n\n" if task.position is None else f": waiting, position {task.position}\n\n".encode()


def _outcome(task: AiTask, request: ChatCompletionRequest) -> Answer | Problem:
    """Return the response of an ended task, with at most one tool call if the request allows only one, or its failure."""
    if task.answer is not None:
        calls = task.answer.tool_calls
        return task.answer.model_copy(update={"tool_calls": calls[:1]}) if calls and request.parallel_tool_calls is False else task.answer
    if task.failure is not None:
        return problem_of_failure(task.failure)
    return Problem(503, str(task.status), task.error or f"The task {task.task_id} ended as {task.status}")
