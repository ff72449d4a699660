"""`chat`: a prompt to a remote provider that speaks OpenAI's protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field, field_validator

from openruntime_jupyter.errors import EngineError
from openruntime_jupyter.operations.base import Operation, Parameters
from openruntime_jupyter.operations.inputs import wrong
from openruntime_jupyter.schemas.ai import About, Message

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext

OURS = {
    "messages": "give messages beside parameters, not among them",
    "model": "give model beside parameters, not among them",
    "stream": "the text always comes as it is written",
    "stream_options": "the text always comes as it is written",
    "n": "a task has one answer: submit as many as you want",
    "tools": "nothing here runs tools",
    "tool_choice": "nothing here runs tools",
    "functions": "nothing here runs tools",
    "function_call": "nothing here runs tools",
    "api_key": "a task is written to the history: say in the profile where the key is",
    "base_url": "say it in the profile",
    "extra_headers": "say them in the profile, as headers",
    "extra_query": "say it in the profile's base_url",
    "extra_body": "give what is in it among parameters",
    "timeout": "give timeout beside operation: it is the task's",
}
"""Parameters that can't be given here, each with what to do instead."""


class Params(Parameters):
    """A prompt; what is not given is not sent."""

    profile: str | None = Field(None, description="The name of a profile; null for the default one.", max_length=100)
    model: str | None = Field(None, description="As the provider calls it; null for the profile's.", min_length=1, max_length=500)
    messages: list[Message] = Field([], description="What is said, in order; at least one.", max_length=10_000, validate_default=True)
    parameters: dict[str, Any] = Field(
        {}, description="What the provider takes, such as `temperature` and `max_tokens`; null takes away what the profile sets."
    )
    about: About | None = Field(None, description="What the prompt was made from.")

    @field_validator("messages")
    @classmethod
    def _something_is_said(cls, messages: list[Message]) -> list[Message]:
        if not messages:
            raise wrong("give at least one")
        for message in messages:
            try:
                message.content.encode()
            except UnicodeEncodeError:
                raise wrong("half of a character, which can't be sent: it was cut in the middle of a surrogate pair") from None
        return messages

    @field_validator("parameters")
    @classmethod
    def _can_be_sent(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        return sendable(parameters)


def sendable(parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters` as they are; raises pydantic's error for what can't go among them, or is no JSON."""
    for name, instead in OURS.items():
        if parameters.get(name) is not None:
            raise wrong(f"{name} can't be given here: {instead}")
    try:
        json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as problem:
        raise wrong(f"not JSON ({problem})") from None
    return parameters


def run(_params: Params, _context: TaskContext) -> NoReturn:
    """Not here: the inline engine runs it."""
    raise EngineError("A chat waits for others, so no worker runs it: the runtime does.")


operation = Operation(
    name="chat", summary="Ask a model of a remote provider that speaks OpenAI's protocol.", params=Params, run=run, inline=True
)
