"""`chat`: a prompt to a remote provider with an OpenAI-compatible API."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import Field, field_validator

from openruntime_jupyter.errors import EngineError, InvalidRequest
from openruntime_jupyter.operations.base import Operation, Parameters, validated
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.response_options import CheckedResponseOptions
from openruntime_jupyter.schemas.ai import About, Message
from openruntime_jupyter.schemas.base import wrong

REJECTED = {
    "messages": "set messages beside parameters, not inside",
    "model": "set model beside parameters, not inside",
    "stream": "the text is always streamed",
    "stream_options": "the text is always streamed",
    "n": "a task has one response: submit several tasks",
    "functions": "set them as tools",
    "function_call": "set it as tool_choice",
    "api_key": "tasks are stored in the history: set the location of the key in the profile",
    "base_url": "set it in the profile",
    "extra_headers": "set them in the profile, as headers",
    "extra_query": "set it in the profile's base_url",
    "extra_body": "set its contents in parameters",
    "timeout": "set the timeout of the task, beside operation",
}
"""Rejected parameters, and what to do instead."""


class Params(Parameters):
    """A prompt; missing fields are not sent."""

    profile: str | None = Field(None, description="Name of a profile; null for the default one.", max_length=100)
    model: str | None = Field(
        None, description="Model name of the provider; null for the one in the profile.", min_length=1, max_length=500
    )
    messages: list[Message] = Field([], description="Messages in order; at least one.", max_length=10_000, validate_default=True)
    parameters: dict[str, Any] = Field(
        {},
        description="Parameters of the provider, such as `temperature`, `max_tokens`, `response_format` and `tools`; null removes one that "
        "the profile sets.",
    )
    about: About | None = Field(None, description="Source of the prompt.")

    @field_validator("messages")
    @classmethod
    def _not_empty(cls, messages: list[Message]) -> list[Message]:
        if not messages:
            raise wrong("give at least one")
        for message in messages:
            try:
                message.text.encode()
            except UnicodeEncodeError:
                raise wrong("has half of a surrogate pair, which can't be encoded: the text was cut inside a character") from None
        return messages

    @field_validator("parameters")
    @classmethod
    def _can_be_sent(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        return sendable(parameters)


def sendable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return `parameters`; raise a pydantic error for rejected ones, for invalid schemas and tools, and for values that are not JSON."""
    for name, instead in REJECTED.items():
        if parameters.get(name) is not None:
            raise wrong(f"{name} is not allowed here: {instead}")
    try:
        json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as problem:
        raise wrong(f"not JSON ({problem})") from None
    # Providers have more values of reasoning_effort than engines.
    options = {name: value for name in CheckedResponseOptions.model_fields if (value := parameters.get(name)) is not None}
    options.pop("reasoning_effort", None)
    try:
        checked = validated(CheckedResponseOptions, options)
    except InvalidRequest as problem:
        raise wrong(str(problem)) from None
    return {**parameters, **{name: value for name, value in checked.model_dump(exclude_unset=True).items() if value is not None}}


def run(_params: Params, _context: TaskContext) -> NoReturn:
    """Raise `EngineError`, because the inline engine runs this operation."""
    raise EngineError("chat runs in the runtime, not in a worker")


operation = Operation(
    name="chat", summary="Send a prompt to a remote provider with an OpenAI-compatible API.", params=Params, run=run, inline=True
)
