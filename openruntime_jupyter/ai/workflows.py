"""Workflows of AI tasks: agent, parameters, and data for the model in addition to the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.base import validated
from openruntime_jupyter.operations.response_options import CheckedResponseOptions
from openruntime_jupyter.schemas.ai import Message, ResponseOptions, Turn, WorkflowInfo, WorkflowList
from openruntime_jupyter.schemas.base import wrong
from openruntime_jupyter.schemas.system import Timeframe

SYSTEM_ANALYSIS = "system_analysis"

Stop = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f\x7f]+$")]
Short = Annotated[str, Field(min_length=1, max_length=200)]
SETTINGS_REQUIREMENT = (
    "Improve settings, not code: name each setting that should change, its new value and the figure that "
    "supports it, and say how to measure the improvement."
)


class PromptOptions(BaseModel):
    """Model, instructions, context and sampling of a prompt."""

    profile: Short | None = Field(None, description="Name of the remote provider; `local`: a local model.")
    model: str | None = Field(None, min_length=1, max_length=4096, description="Name of the model, as in `GET /models` or at the provider.")
    agent: Short | None = Field(None, description="Role of the agent for the instructions; `GET /ai/agents` lists them.")
    system: str | None = Field(None, description="Custom instructions that replace the agent's; empty: none.", max_length=1_000_000)
    context: str | None = Field(None, description="Context of the prompt, such as a file or the head of a table.", min_length=1)
    conversation: Name | None = Field(None, description="Name of the conversation to continue or start.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 selects the most likely token each time.")
    top_p: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="Sample only from the most likely tokens with this total probability."
    )
    max_tokens: int | None = Field(None, ge=1, le=10_000_000, description="Maximum tokens of the response.")
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=16)] | None = Field(
        None, description="Text before which the response ends."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same response, if the model supports it.")
    adapter: str | None = Field(None, min_length=1, max_length=4096, description="Path of a LoRA adapter for a local model.")
    keep_alive: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds that a local model stays in memory after this prompt."
    )


class Shared(CheckedResponseOptions, PromptOptions):
    """Parameters of all workflows. Missing and null values are not sent."""

    model_config = ConfigDict(extra="forbid")

    tool_messages: list[Message] | None = Field(
        None,
        max_length=1_000,
        description="Tool calls of the model so far with their results: messages of the roles `assistant` and `tool`, after the prompt.",
    )

    @field_validator("tool_messages")
    @classmethod
    def _only_calls_and_results(cls, messages: list[Message] | None) -> list[Message] | None:
        for message in messages or ():
            if message.role not in ("assistant", "tool"):
                raise wrong(f"must have only the roles assistant and tool, not {message.role}")
        return messages

    def response_options(self) -> dict[str, Any]:
        """Return the given options of the response, as JSON."""
        given = self.model_dump(include=set(ResponseOptions.model_fields))
        return {name: value for name, value in given.items() if value not in (None, False)}

    def requirements(self) -> list[str]:
        """Return the requirements of the parameters as sentences."""
        return []

    def metrics_period(self) -> Timeframe | None:
        """Return the period of the metrics that are sent to the model, or None."""
        return None

    def sends_settings(self) -> bool:
        """Return whether the runtime's settings are sent to the model."""
        return False


class CodeGeneration(Shared):
    """Parameters of `code_generation`."""

    language: Short | None = Field(None, description="The programming language.")
    style: Short | None = Field(None, description="Coding style, such as `functional`.")

    def requirements(self) -> list[str]:
        """Return the language and the style."""
        given = {"Programming language": self.language, "Style": self.style}
        return [f"{name}: {value}." for name, value in given.items() if value is not None]


class SystemAnalysis(Shared):
    """Parameters of `system_analysis`."""

    timeframe: Timeframe = Field("1h", description="Period of the metrics that are sent to the model.")

    def metrics_period(self) -> Timeframe:
        """Return the timeframe."""
        return self.timeframe


class Optimization(Shared):
    """Parameters of `optimization`."""

    target: Literal["code", "settings"] = Field(
        "code", description="Target of the optimization: the code in the prompt, or the settings of this runtime."
    )
    language: Short | None = Field(None, description="The programming language of the code.")
    timeframe: Timeframe = Field("1h", description="With `settings`: period of the metrics that are sent to the model.")

    def requirements(self) -> list[str]:
        """Return the language, and for settings the form of the answer."""
        language = [] if self.language is None else [f"Programming language: {self.language}."]
        return [*language, SETTINGS_REQUIREMENT] if self.sends_settings() and self.system is None else language

    def metrics_period(self) -> Timeframe | None:
        """Return the timeframe if the target is the settings."""
        return self.timeframe if self.sends_settings() else None

    def sends_settings(self) -> bool:
        """Return whether the target is the settings."""
        return self.target == "settings"


class ModelInference(Shared):
    """Parameters of `model_inference`."""


@dataclass(frozen=True)
class Workflow:
    """Workflow of AI tasks. `agent` is a role; `context` describes the data sent in addition to the prompt."""

    name: str
    summary: str
    agent: str | None
    context: str
    parameters: type[Shared]

    def read(self, given: dict[str, Any]) -> Shared:
        """Validate the parameters of a request. Raises `InvalidRequest`, which lists the valid names for an unknown one."""
        return validated(self.parameters, given, "parameters")

    def info(self) -> WorkflowInfo:
        """Return the entry of `GET /ai/workflows`."""
        return WorkflowInfo(
            name=self.name,
            summary=self.summary,
            agent=self.agent,
            context=self.context,
            parameters_schema=self.parameters.model_json_schema(),
        )


WORKFLOWS = {
    workflow.name: workflow
    for workflow in (
        Workflow(
            "code_generation",
            "Generate code.",
            "DEVELOPER",
            "The agent's instructions; `language` and `style`, if given.",
            CodeGeneration,
        ),
        Workflow(
            SYSTEM_ANALYSIS,
            "Analyze the state of this runtime.",
            "ANALYST",
            "The agent's instructions; devices, load, memory, queueing and tasks by state over `timeframe`, as recorded. "
            "Remote models receive these metrics.",
            SystemAnalysis,
        ),
        Workflow(
            "optimization",
            "Optimize the code in the prompt, or the settings of this runtime.",
            "OPTIMIZER",
            "The agent's instructions; `language`; with `target` `settings` the runtime's settings except paths, and its metrics over "
            "`timeframe`. Remote models receive these.",
            Optimization,
        ),
        Workflow(
            "model_inference",
            "Send the prompt to a model unchanged.",
            None,
            "Nothing, unless `agent`, `system`, `context` or `conversation` is given.",
            ModelInference,
        ),
    )
}
"""Workflows by name, in display order."""


def workflow(name: str) -> Workflow:
    """Return a workflow by name. Raises `InvalidRequest`, which lists the available workflows."""
    found = WORKFLOWS.get(name)
    if found is None:
        raise InvalidRequest.of("workflow_type", f"unknown workflow {name!r}; available: {', '.join(WORKFLOWS)}")
    return found


def workflows() -> WorkflowList:
    """Return all workflows."""
    return WorkflowList(workflows=[each.info() for each in WORKFLOWS.values()])


BYTES_PER_TOKEN = 3
"""Lower bound for UTF-8 in most text. A low value truncates conversations early enough."""
TOKENS_PER_MESSAGE = 8
"""Overhead of chat templates."""
ANSWER_TOKENS = 512
"""Tokens reserved for the response without `max_tokens`."""
UNKNOWN_CONTEXT = 16_384
"""Assumed context length in tokens if it is unknown."""


def system_message(instructions: str | None, parameters: Shared, *parts: str) -> list[Message]:
    """Return the system message: the caller's or the agent's instructions, and `parts`. Empty without any text."""
    first = parameters.system if parameters.system is not None else instructions
    text = "\n\n".join(part for part in (first, *parts) if part)
    return [Message(role="system", content=text)] if text else []


def user_message(prompt: str, parameters: Shared) -> Message:
    """Return the prompt, preceded by its context."""
    return Message(role="user", content=prompt if parameters.context is None else f"{parameters.context}\n\n{prompt}")


def tokens_of(*texts: str) -> int:
    """Return an upper estimate of the number of tokens of messages with these texts."""
    return sum(TOKENS_PER_MESSAGE + math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for text in texts)


def with_turns(
    system: Sequence[Message], turns: Sequence[Turn], asked: Sequence[Message], context_length: int | None, max_tokens: int | None
) -> tuple[list[Message], int]:
    """Return all messages with the newest turns that fit `context_length` tokens, and the number of omitted turns.

    `asked` is the prompt, followed by the messages of its tool calls.
    """
    most = context_length or UNKNOWN_CONTEXT
    answer = max_tokens if max_tokens is not None else min(ANSWER_TOKENS, most // 4)
    room = most - answer - tokens_of(*(message.text for message in (*system, *asked)))
    kept: list[Message] = []
    left_out = len(turns)
    for turn in reversed(turns):
        room -= tokens_of(turn.prompt, turn.answer)
        if room < 0:
            break
        kept[:0] = [Message(role="user", content=turn.prompt), Message(role="assistant", content=turn.answer)]
        left_out -= 1
    return [*system, *kept, *asked], left_out
