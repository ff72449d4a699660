"""`generate`: text from a local language model, token by token."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from openruntime_jupyter.errors import EngineError
from openruntime_jupyter.local_models.gguf import context_for, memory_for
from openruntime_jupyter.local_models.language_model import LanguageModel
from openruntime_jupyter.operations.base import ModelParameters, Operation
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.operations.json_schema import mismatch
from openruntime_jupyter.operations.response_options import CheckedResponseOptions
from openruntime_jupyter.schemas.ai import LOCAL, About, Answer, ChosenTool, Message
from openruntime_jupyter.schemas.base import wrong
from openruntime_jupyter.schemas.values import GenerationOptions, ToolCallPiece

GREETING = "Say hello in one sentence."
"""Default prompt, to check that everything works."""
CHARACTERS_PER_TOKEN = 4
"""Approximate value for English; the worker counts exactly."""
SMALLEST_NUMBER = 2
"""Minimum bytes of a number in the key-value cache; more if the worker decides to compute in float32."""

ANY_OBJECT = {"type": "object"}
"""JSON schema of the response format `json_object`."""

StopString = Annotated[str, Field(min_length=1, max_length=200)]


class Params(CheckedResponseOptions, ModelParameters):
    """A prompt and generation options. Without a temperature the most likely token is chosen; other options have no effect if null."""

    prompt: str | None = Field(None, description="Plain text that the model continues; or give messages.", min_length=1)
    messages: list[Message] | None = Field(
        None, description="A conversation, formatted with the model's chat template.", min_length=1, max_length=10_000
    )
    max_tokens: int = Field(512, description="Maximum number of tokens to generate.", ge=1, le=1_000_000, strict=True)
    temperature: float | None = Field(None, description="0 always chooses the most likely token.", ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(None, description="Choose from the most likely tokens with this total probability.", gt=0, le=1)
    top_k: int | None = Field(None, description="Choose from this number of most likely tokens.", ge=1, le=2**31 - 1, strict=True)
    min_p: float | None = Field(None, description="Choose from tokens with at least this fraction of the highest probability.", ge=0, le=1)
    repetition_penalty: float | None = Field(
        None, description="Above 1: makes recent tokens less likely.", gt=0, le=10, allow_inf_nan=False
    )
    seed: int | None = Field(None, description="Seed of the random choices; null: a new one each time.", ge=0, le=2**63 - 1, strict=True)
    stop: StopString | list[StopString] | None = Field(None, description="Text, or up to 16 texts, before which the response ends.")
    about: About | None = Field(None, description="Source of the prompt, set by the AI service.")

    @field_validator("stop", mode="before")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 16:
            raise wrong(f"{len(stop)} stop texts exceed the maximum of 16")
        return stop

    @model_validator(mode="after")
    def _one_prompt(self) -> Params:
        if self.prompt is not None and self.messages is not None:
            raise wrong("give a prompt or messages, not both")
        for name in ("tools", "reasoning_effort"):
            if self.prompt is not None and getattr(self, name) is not None:
                raise wrong(f"{name} requires messages: a plain prompt has no chat template")
        return self

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages, or the default prompt. Chat templates know no role `developer`, so it becomes `system`."""
        messages = [message.model_dump() for message in self.messages or [Message(role="user", content=GREETING)]]
        return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]

    @property
    def options(self) -> GenerationOptions:
        """Return the generation options for the model."""
        sampling = {"temp": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return GenerationOptions(
            self.max_tokens,
            {name: value for name, value in sampling.items() if value is not None},
            self.repetition_penalty,
            self.seed,
            (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=self._schema(),
            tools=self._usable_tools(),
            call_required=self.tool_choice == "required" or isinstance(self.tool_choice, ChosenTool),
            reasoning_effort=self.reasoning_effort,
        )

    def _usable_tools(self) -> tuple[dict[str, Any], ...]:
        if self.tool_choice == "none":
            return ()
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else None
        return tuple(tool.model_dump() for tool in self.tools or () if chosen in (None, tool.function.name))

    def _schema(self) -> dict[str, Any] | None:
        if self.response_format is None or self.response_format.type == "text":
            return None
        given = self.response_format.json_schema
        return ANY_OBJECT if given is None else given.schema_


def memory(params: Params) -> int | None:
    """Estimate the bytes for the weights as on disk, and the key-value cache of prompt and response.

    For an MLX model it is a lower bound. The worker counts the tokens, and rejects a prompt that does not fit before processing it.
    """
    source = params.source
    if source is None or source.bytes is None:
        return None
    letters = len(params.prompt) if params.prompt is not None else sum(len(message["content"] or "") for message in params.conversation)
    letters += len(json.dumps(params.options.tools))
    tokens = letters // CHARACTERS_PER_TOKEN + params.max_tokens
    if source.kind == "gguf":
        return memory_for(source, context_for(source, tokens))
    if source.context_length is not None:
        tokens = min(tokens, source.context_length)
    return source.bytes + tokens * (source.cache_numbers or 0) * SMALLEST_NUMBER


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Load the model unless it is in memory, and generate; the output is an `Answer`."""
    started = time.perf_counter()
    resident = bool(context.resident)
    model = context.language_model()
    load_time = None if resident else time.perf_counter() - started
    answer = _answer(model, params, context)
    return Answer(model_used=model.name, provider=LOCAL, load_time_s=load_time, **answer).model_dump()


def _answer(model: LanguageModel, params: Params, context: TaskContext) -> dict[str, Any]:
    """Return the response of the model. Raises `EngineError` for one that does not fit its JSON schema."""
    options = params.options
    if options.tools and options.schema is not None:
        # Engines can't restrict a text to JSON if it may be a call. A model that calls no tool answers again, without the tools.
        called = model.answer(None, params.conversation, replace(options, schema=None, streamed=False), context)
        if called["tool_calls"] is not None:
            context.reasoning(called["reasoning"] or "")
            context.token(called["text"])
            for index, call in enumerate(called["tool_calls"]):
                context.tool_call(ToolCallPiece(index, call["function"]["arguments"], call["id"], call["function"]["name"]))
            return called
        options = replace(options, tools=(), call_required=False)
    answer = model.answer(params.prompt, params.conversation, options, context)
    if options.schema is not None and answer["finish_reason"] == "stop" and not options.stop:
        problem = mismatch(answer["text"], options.schema)
        if problem is not None:
            raise EngineError(f"{model.name} ignored response_format: the text {problem}")
    return answer


operation = Operation(
    name="generate",
    summary="Answer a prompt with a local language model, token by token.",
    params=Params,
    run=run,
    memory=memory,
    resident=True,
    shared=True,
    returns_arrays=False,
)
