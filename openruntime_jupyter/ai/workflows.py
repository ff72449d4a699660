"""Workflows: what an AI task can be for. Each says its agent, its parameters, and what its model is told beside the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.operations.base import invalid
from openruntime_jupyter.schemas.ai import WorkflowInfo, WorkflowList
from openruntime_jupyter.schemas.system import Timeframe

SYSTEM_ANALYSIS = "system_analysis"

Stop = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f\x7f]+$")]
Short = Annotated[str, Field(min_length=1, max_length=200)]
SETTINGS_WISH = (
    "It is settings that are to be made better here, and no code: name each one that should change, its new value and the figure that "
    "speaks for it, and say how to measure that it got better."
)


class Shared(BaseModel):
    """The parameters that every workflow has. One that is not given, or null, is not sent."""

    model_config = ConfigDict(extra="forbid")

    profile: Short | None = Field(None, description="The remote provider to ask, by its name; `local`: a model of this machine.")
    model: str | None = Field(
        None, min_length=1, max_length=4096, description="The model to ask, as `GET /models` or the provider calls it."
    )
    agent: Short | None = Field(None, description="The role of the agent whose instructions the model gets; `GET /ai/agents` lists them.")
    system: str | None = Field(None, description="Instructions of your own, in place of the agent's; empty: none.", max_length=1_000_000)
    context: str | None = Field(None, description="Text that belongs to the prompt, such as a file or the head of a table.", min_length=1)
    conversation: Name | None = Field(None, description="The name of the conversation to go on with, or to begin.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest word each time.")
    top_p: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="Only the likeliest words that together have this probability."
    )
    max_tokens: int | None = Field(None, ge=1, le=10_000_000, description="Tokens that the answer may have.")
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=16)] | None = Field(None, description="Text before which it ends.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same answer, as far as the model allows that.")
    keep_alive: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds that a local model stays in memory after this prompt; not for remote ones."
    )


class CodeGeneration(Shared):
    """`code_generation`."""

    language: Short | None = Field(None, description="The programming language.")
    style: Short | None = Field(None, description="How it is to be written, such as `functional`.")


class SystemAnalysis(Shared):
    """`system_analysis`."""

    timeframe: Timeframe = Field("1h", description="How far back the figures go that the model is told.")


class Optimization(Shared):
    """`optimization`."""

    target: Literal["code", "settings"] = Field(
        "code", description="What is to be made better: the code in the prompt, or the settings of this runtime."
    )
    language: Short | None = Field(None, description="The programming language of the code.")
    timeframe: Timeframe = Field("1h", description="With `settings`: how far back the figures go that the model is told.")


class ModelInference(Shared):
    """`model_inference`."""


class Told(Enum):
    """What of the runtime's own a model is told."""

    NOTHING = "nothing"
    FIGURES = "figures"
    SETTINGS = "settings"


@dataclass(frozen=True)
class Workflow:
    """One of them. `agent` is a role; `context` says in words what the model is told beside the prompt."""

    name: str
    summary: str
    agent: str | None
    context: str
    parameters: type[Shared]

    def read(self, given: dict[str, Any]) -> Shared:
        """The parameters of a request; raises `InvalidRequest`, which for an unknown one names those that there are."""
        try:
            return self.parameters.model_validate(given)
        except ValidationError as problem:
            raise invalid(problem, "parameters", self.parameters.model_fields) from None

    def told(self, parameters: Shared) -> Told:
        """Which of the runtime's own the model is told."""
        if isinstance(parameters, SystemAnalysis):
            return Told.FIGURES
        return Told.SETTINGS if isinstance(parameters, Optimization) and parameters.target == "settings" else Told.NOTHING

    def wishes(self, parameters: Shared) -> list[str]:
        """What the parameters ask of the answer, as sentences."""
        wishes = []
        if isinstance(parameters, (CodeGeneration, Optimization)) and parameters.language is not None:
            wishes.append(f"Programming language: {parameters.language}.")
        if isinstance(parameters, CodeGeneration) and parameters.style is not None:
            wishes.append(f"Style: {parameters.style}.")
        if self.told(parameters) is Told.SETTINGS and parameters.system is None:
            wishes.append(SETTINGS_WISH)
        return wishes

    def info(self) -> WorkflowInfo:
        """What `GET /ai/workflows` tells of it."""
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
            "The agent's instructions; `language` and `style`, where they are given.",
            CodeGeneration,
        ),
        Workflow(
            SYSTEM_ANALYSIS,
            "Analyze the state of this runtime.",
            "ANALYST",
            "The agent's instructions; devices, load, memory, queueing and tasks by state over `timeframe`, as they were recorded. "
            "A remote model is sent these figures.",
            SystemAnalysis,
        ),
        Workflow(
            "optimization",
            "Optimize the code in the prompt, or the settings of this runtime.",
            "OPTIMIZER",
            "The agent's instructions; `language`; with `target` `settings` the runtime's settings but for paths, and its figures over "
            "`timeframe`. A remote model is sent these.",
            Optimization,
        ),
        Workflow(
            "model_inference",
            "Give the prompt to a model as it is.",
            None,
            "Nothing, unless `agent`, `system`, `context` or `conversation` is given.",
            ModelInference,
        ),
    )
}
"""By name, in the order in which they are told."""


def workflow(name: str) -> Workflow:
    """The workflow of that name; raises `InvalidRequest`, which names those that there are."""
    found = WORKFLOWS.get(name)
    if found is None:
        raise InvalidRequest.of("workflow_type", f"there is no workflow {name!r}; there are {', '.join(WORKFLOWS)}")
    return found


def workflows() -> WorkflowList:
    """All of them."""
    return WorkflowList(workflows=[each.info() for each in WORKFLOWS.values()])
