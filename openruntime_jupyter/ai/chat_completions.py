"""Chat completions in OpenAI's format: conversion of requests to tasks of the runtime, and of tasks to responses."""

from __future__ import annotations

import time
from typing import Any

from openruntime_jupyter.ai.model_selection import Choice
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.schemas.ai import About, Answer
from openruntime_jupyter.schemas.chat_completions import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatMessage,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionChoice,
    CompletionEnd,
    CompletionHeaders,
    CompletionMessage,
    CompletionUsage,
    Delta,
    FunctionDelta,
    PromptTokensDetails,
    ToolCallDelta,
)
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import ReasoningPiece, TokenPiece, ToolCallPiece

WORKFLOW = "model_inference"
NAME = "chat completion"
"""Name of tasks without the header for it."""
LOCAL_TOKENS = 4096
"""Maximum tokens of a local model's response without `max_tokens`. OpenAI's API has no limit, which programs rely on."""

PASSED = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("response_format", "tools", "tool_choice", "logprobs", "top_logprobs", "reasoning_effort"),
)
"""Options that are passed on under the same name."""
REMOTE = ("logit_bias", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key", "metadata", "store", "service_tier")
"""Options that are passed to remote models only."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "stop": ("", []),
    "logit_bias": ({},),
}
"""Values without an effect, which some programs always send. They are not passed on, because not every model supports the option."""
NOT_SENT = {"reasoning_content", "refusal", "annotations", "audio", "function_call"}
"""Fields of messages that are not sent to the model under this name."""
ENDS: dict[str | None, CompletionEnd] = {"length": "length", "content_filter": "content_filter"}
"""Ends other than `stop` and `tool_calls`. They tell that tool calls may be incomplete."""


def task_of(request: ChatCompletionRequest, options: CompletionHeaders, choice: Choice) -> TaskRequest:
    """Return the task request: `chat` for a remote profile, else `generate`. Raises `InvalidRequest` for unsupported options."""
    given = _given(request)
    sent: dict[str, Any] = {"messages": [_message(each) for each in request.messages], "about": About(workflow=WORKFLOW).model_dump()}
    if choice.model is not None:
        sent["model"] = choice.model
    if choice.profile is None:
        if "logit_bias" in given:
            raise InvalidRequest.of("logit_bias", "is not supported by local models: omit it, or use a remote model")
        sent |= {"max_tokens": LOCAL_TOKENS, **{name: value for name, value in given.items() if name not in REMOTE}}
    else:
        sent |= {"profile": choice.profile, "parameters": given}
    return TaskRequest(
        operation="generate" if choice.profile is None else "chat",
        parameters=sent,
        priority=options.priority,
        timeout=options.timeout,
        name=options.name or NAME,
        notebook=options.notebook,
    )


def _given(request: ChatCompletionRequest) -> dict[str, Any]:
    """Return the options of the request that have an effect."""
    if request.n is not None and request.n > 1:
        raise InvalidRequest.of("n", "must be 1: a task has one response, so send several requests")
    given = request.model_dump(include={*PASSED, *REMOTE}, exclude_none=True)
    given = {name: value for name, value in given.items() if value not in NEUTRAL.get(name, ())}
    limit = request.max_completion_tokens or request.max_tokens
    return given if limit is None else {**given, "max_tokens": limit}


def _message(message: ChatMessage) -> dict[str, Any]:
    sent = message.model_dump(exclude=NOT_SENT)
    return {"reasoning": message.reasoning_content, **sent} if message.reasoning_content else sent


def completion_of(task_id: str, model: str, answer: Answer) -> ChatCompletion:
    """Return the response for a completed task. `model` is the id of the model."""
    message = CompletionMessage(
        content=None if answer.tool_calls and not answer.text else answer.text,
        reasoning_content=answer.reasoning,
        tool_calls=answer.tool_calls or None,
    )
    choice = CompletionChoice(message=message, finish_reason=_end(answer), logprobs=_logprobs(answer))
    return ChatCompletion(id=task_id, created=int(time.time()), model=model, choices=[choice], usage=usage_of(answer))


def _end(answer: Answer) -> CompletionEnd:
    return ENDS.get(answer.finish_reason) or ("tool_calls" if answer.tool_calls else "stop")


def _logprobs(answer: Answer) -> ChoiceLogprobs | None:
    return None if answer.logprobs is None else ChoiceLogprobs(content=answer.logprobs)


def _call_delta(piece: ToolCallPiece) -> ToolCallDelta:
    function = FunctionDelta(name=piece.name, arguments=piece.arguments)
    return ToolCallDelta(index=piece.index, id=piece.id, type="function" if piece.name else None, function=function)


def usage_of(answer: Answer) -> CompletionUsage:
    """Return the numbers of tokens of a response."""
    prompt, completion = answer.prompt_tokens or 0, answer.completion_tokens or 0
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=answer.tokens_used or prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=answer.cached_tokens or 0),
    )


class Chunks:
    """Chunks of the streamed response of a task.

    Parameters
    ----------
    model : id of the model
    most_calls : maximum number of tool calls; None for any
    """

    def __init__(self, task_id: str, model: str, most_calls: int | None = None) -> None:
        self._task_id = task_id
        self._model = model
        self._most_calls = most_calls
        self._created = int(time.time())
        self._first = True
        self._reasoned = False
        self._arguments: list[str] = []
        """Arguments of each call that were sent."""

    def piece(self, piece: TokenPiece | ReasoningPiece | ToolCallPiece) -> ChatCompletionChunk | None:
        """Return the chunk with a piece of the response; None for one that is not sent."""
        if isinstance(piece, TokenPiece):
            return self._delta(Delta(content=piece.text))
        if isinstance(piece, ReasoningPiece):
            self._reasoned = True
            return self._delta(Delta(reasoning_content=piece.text))
        if self._most_calls is not None and piece.index >= self._most_calls:
            return None
        if piece.index == len(self._arguments):
            self._arguments.append("")
        self._arguments[piece.index] += piece.arguments
        return self._delta(Delta(tool_calls=[_call_delta(piece)]))

    def end(self, answer: Answer, *, usage: bool) -> list[ChatCompletionChunk]:
        """Return the chunks for the end of the response, with what was not sent before. `usage` adds one with the numbers of tokens."""
        made = [self._delta(Delta(content=""))] if self._first and not answer.reasoning and not answer.tool_calls else []
        if answer.reasoning and not self._reasoned:
            made.append(self._delta(Delta(reasoning_content=answer.reasoning)))
        for index, call in enumerate(answer.tool_calls or ()):
            if index == len(self._arguments):
                made += filter(None, [self.piece(ToolCallPiece(index, id=call.id, name=call.function.name))])
            arguments, sent = call.function.arguments, self._arguments[index]
            if arguments.startswith(sent) and arguments != sent:
                made += filter(None, [self.piece(ToolCallPiece(index, arguments[len(sent) :]))])
        made.append(self._delta(Delta(), finish_reason=_end(answer), logprobs=_logprobs(answer)))
        return [*made, self._chunk(usage=usage_of(answer))] if usage else made

    def _delta(self, delta: Delta, **fields: Any) -> ChatCompletionChunk:
        """Return a chunk with a part of the message. The first one names its author."""
        if self._first:
            self._first = False
            delta = delta.model_copy(update={"role": "assistant"})
        return self._chunk(ChunkChoice(delta=delta, **fields))

    def _chunk(self, *choices: ChunkChoice, usage: CompletionUsage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=self._task_id, created=self._created, model=self._model, choices=[*choices], usage=usage)
