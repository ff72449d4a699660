"""`generate`: text from a language model on this machine, token by token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from openruntime_jupyter.operations.base import ModelParameters, Operation
from openruntime_jupyter.operations.inputs import wrong
from openruntime_jupyter.schemas.ai import LOCAL, About, Answer, Message
from openruntime_jupyter.schemas.values import GenerationOptions

if TYPE_CHECKING:
    from openruntime_jupyter.worker.context import TaskContext

GREETING = "Say hello in one sentence."
"""What is asked where nothing is, to see that all works."""
CHARACTERS_PER_TOKEN = 4
"""Of English, about; the worker counts."""
SMALLEST_NUMBER = 2
"""Bytes of a number in the key-value cache: more where the model computes in float32, which the worker decides."""

StopString = Annotated[str, Field(min_length=1, max_length=200)]


class Params(ModelParameters):
    """A prompt and how to answer it. What is null is left to mlx-lm: without a temperature the likeliest token is taken."""

    prompt: str | None = Field(None, description="Plain text that the model goes on with; or give messages.", min_length=1)
    messages: list[Message] | None = Field(
        None, description="A conversation, which the model's chat template makes a prompt.", min_length=1
    )
    max_tokens: int = Field(512, description="The most that is written, in tokens.", ge=1, le=1_000_000, strict=True)
    temperature: float | None = Field(None, description="0 takes the likeliest token always.", ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(None, description="Take only from the likeliest tokens that have this share together.", gt=0, le=1)
    top_k: int | None = Field(None, description="Take only from so many of the likeliest tokens.", ge=1, le=2**31 - 1, strict=True)
    min_p: float | None = Field(None, description="Take only tokens of at least this share of the likeliest one's probability.", ge=0, le=1)
    repetition_penalty: float | None = Field(
        None, description="Above 1: what was among the last tokens becomes less likely.", gt=0, le=10, allow_inf_nan=False
    )
    seed: int | None = Field(None, description="Of the random choices; null: another one each time.", ge=0, le=2**63 - 1, strict=True)
    stop: StopString | list[StopString] | None = Field(None, description="Text, or up to 16 texts, before which the answer ends.")
    about: About | None = Field(None, description="What the AI service made it from.")

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 16:
            raise wrong(f"{len(stop)} stop texts, and the most is 16")
        return stop

    @model_validator(mode="after")
    def _one_prompt(self) -> Params:
        if self.prompt is not None and self.messages is not None:
            raise wrong("give a prompt or messages: not both")
        return self

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages; the greeting where nothing is asked."""
        return [message.model_dump() for message in self.messages or [Message(role="user", content=GREETING)]]

    @property
    def wishes(self) -> GenerationOptions:
        """How to answer, as the model takes it."""
        sampling = {"temp": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return GenerationOptions(
            self.max_tokens,
            {name: value for name, value in sampling.items() if value is not None},
            self.repetition_penalty,
            self.seed,
            (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )


def memory(params: Params) -> int | None:
    """Bytes at the least: the weights as they lie on disk, and the key-value cache of the prompt and its answer.

    The worker, which counts the tokens, refuses what does not fit before it reads the prompt.
    """
    source = params.source
    if source is None or source.bytes is None:
        return None
    letters = len(params.prompt) if params.prompt is not None else sum(len(message["content"]) for message in params.conversation)
    tokens = letters // CHARACTERS_PER_TOKEN + params.max_tokens
    if source.context_length is not None:
        tokens = min(tokens, source.context_length)
    return source.bytes + tokens * (source.cache_numbers or 0) * SMALLEST_NUMBER


def run(params: Params, context: TaskContext) -> dict[str, Any]:
    """Load the model unless it is in memory, and let it write; the output is an `Answer`."""
    started = time.perf_counter()
    resident = bool(context.resident)
    model = context.language_model()
    load_time = None if resident else time.perf_counter() - started
    tokens = model.tokens_of(params.prompt, params.conversation)
    answer = model.write(tokens, params.wishes, context)
    return Answer(model_used=model.name, provider=LOCAL, load_time_s=load_time, **answer).model_dump()


operation = Operation(
    name="generate",
    summary="Let a language model on this machine answer a prompt, token by token.",
    params=Params,
    run=run,
    memory=memory,
    resident=True,
    shared=True,
)
