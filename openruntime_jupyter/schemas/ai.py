"""The wire types of prompts and models: what `models.py` is to tasks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Priority, Timestamp, Wire
from openruntime_jupyter.schemas.tasks import Failure, Origin, TaskState

DEFAULT_AI_TIMEOUT = 300.0
"""Seconds that an AI task may run, unless its request says otherwise."""
LOCAL = "local"
"""What stands for this machine where a provider or profile is named."""

Role = Literal["system", "user", "assistant"]


class Message(Wire):
    """One message to a model, or of it."""

    role: Role
    content: str


class About(Wire):
    """What an AI task was made from; part of the parameters of its operation."""

    workflow: str | None = Field(None, description="The workflow.")
    agent: str | None = Field(None, description="The role of the agent whose instructions it has; null: none.")
    conversation: str | None = Field(None, description="The name of the conversation that it goes on with.")
    left_out: int = Field(0, description="How many of the conversation's oldest turns were left out, as the model has no room for them.")


class Answer(Wire):
    """What a model answered: the `output` of a completed AI task. Figures are null where the provider does not give them."""

    text: str
    model_used: str | None = Field(None, description="The model, as whoever answered calls it.")
    provider: str = Field(description="`local`, or the name of the profile.")
    finish_reason: str | None = Field(None, description="Such as `stop`, or `length` where it was cut at `max_tokens`.")
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_used: int | None = Field(None, description="Of prompt and answer together.")
    tokens_per_second: float | None = Field(None, description="Of the answer.")
    prompt_tokens_per_second: float | None = Field(None, description="Of the prompt.")
    time_to_first_token_s: float | None = Field(
        None, description="Seconds from the start to the first token; for a local model from when it is in memory."
    )
    load_time_s: float | None = Field(None, description="Seconds that loading a local model took; null where it was in memory already.")


class AiRequest(Wire):
    """What is asked of a model: the body of `POST /ai/tasks`."""

    workflow_type: str = Field(description="The name of a workflow; `GET /ai/workflows` lists them.", min_length=1, max_length=100)
    prompt: str = Field(description="What is asked.", min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict, description="The workflow's parameters; what is not given is not sent.")
    timeout: float = Field(
        DEFAULT_AI_TIMEOUT, description="Seconds of running after which the task is stopped.", gt=0, le=31_536_000, allow_inf_nan=False
    )
    stream: bool = Field(False, description="true: answer by server-sent events, as the text is written.", strict=True)
    wait: bool = Field(True, description="false: answer 202 at once, and let the task outlive this connection.", strict=True)
    priority: Priority = Field(5, description="1 to 10; 10 is the most urgent.")
    device_preference: str = Field(
        "auto", description="For a local model: `auto`, `gpu`, `cpu`, or the id of a device.", min_length=1, max_length=100
    )
    retries: int = Field(0, description="How often to run it again if its worker process dies.", ge=0, le=10, strict=True)
    name: str | None = Field(None, description="What people call it; null: the name of its workflow.", max_length=200)
    origin: Origin = Field("rest", description="Where it comes from.")


class AiTask(Wire):
    """An AI task as `POST /ai/tasks` answers it; `GET /tasks/{id}` has its whole record."""

    task_id: str = Field(description="Begins with `ai_task_`; ids sort by time.")
    status: TaskState
    result: str | None = Field(description="The text, of a completed task.")
    model_used: str | None = Field(description="The model, as whoever answered calls it.")
    tokens_used: int | None = Field(description="Of prompt and answer together; null where the provider does not say.")
    execution_time: float | None = Field(description="Seconds from start to end; while it runs, until now.")
    workflow_type: str | None = Field(None, description="The workflow.")
    agent: str | None = Field(None, description="The role of the agent whose instructions it had.")
    conversation: str | None = Field(None, description="The conversation that it is part of.")
    left_out: int = Field(0, description="How many of the conversation's oldest turns were left out, as the model has no room for them.")
    untold: list[str] = Field(
        default_factory=list,
        description="Of a `system_analysis`: figures in `result` that its model was not told. It computed them, or made them up.",
    )
    answer: Answer | None = Field(None, description="The text with all its figures, of a completed task.")
    error: str | None = Field(None, description="One line, where it did not complete.")
    failure: Failure | None = Field(None, description="The post-mortem, where it did not complete.")
    position: int | None = Field(None, description="1 is next; only while it waits.")
    waiting_for: str | None = Field(None, description="What a waiting task waits for, where it is not only its turn.")
    timestamp: Timestamp = Field(description="When its state last changed.")


class AgentInfo(Wire):
    """A role that a model is given."""

    role: str = Field(description="By which `parameters.agent` names it.")
    name: str
    description: str
    capabilities: list[str]
    source: Literal["built-in", "configured"] = Field("built-in", description="Whether it is ours, or of the configured folder.")


class AgentList(Wire):
    """`GET /ai/agents`."""

    agents: list[AgentInfo]
    problems: list[str] = Field(
        default_factory=list, description="Files of the configured folder that were left out, each with what to do."
    )


class WorkflowInfo(Wire):
    """What an AI task can be for."""

    name: str = Field(description="What `POST /ai/tasks` takes as `workflow_type`.")
    summary: str = Field(description="One line.")
    agent: str | None = Field(description="The agent that it has unless another is named; null: none.")
    context: str = Field(description="What the model is told beside the prompt.")
    parameters_schema: dict[str, Any] = Field(description="The JSON schema of its parameters.")


class WorkflowList(Wire):
    """`GET /ai/workflows`."""

    workflows: list[WorkflowInfo]


class Turn(Wire):
    """A prompt of a conversation, and its answer."""

    task_id: str
    prompt: str
    answer: str
    model_used: str | None = None
    timestamp: Timestamp = Field(description="When it was answered.")


class ConversationInfo(Wire):
    """A conversation of somebody's, without what was said."""

    name: str
    owner: str | None = Field(None, description="Whose it is; null without a login.")
    turns: int = Field(description="How many prompts were answered.")
    started_at: Timestamp = Field(description="When its first prompt was submitted.")
    timestamp: Timestamp = Field(description="When its last prompt was answered.")


class Conversation(ConversationInfo):
    """A conversation."""

    messages: list[Turn] = Field(description="In the order in which the prompts were submitted.")


class ConversationList(Wire):
    """`GET /ai/conversations`, the last used first."""

    conversations: list[ConversationInfo]


class ResidentInfo(Wire):
    """A worker that has a model in memory."""

    lane: str = Field(description="The id of the device.")
    state: Literal["starting", "idle", "busy"]
    resident_bytes: int | None = Field(None, description="The worker's memory, where it is known.")
    idle_seconds: float | None = Field(None, description="Since its last prompt; null while it is busy.")
    keep_alive_seconds: float = Field(description="How long it stays without work.")
    task_id: str | None = Field(None, description="What it answers now.")


class ModelInfo(Wire):
    """A model of this machine, and whether it is in memory."""

    name: str = Field(description="What `parameters.model` takes.")
    kind: Literal["mlx", "gguf", "hub"] | None = Field(None, description="null: its files are not among those that are known now.")
    path: str | None = Field(None, description="Where it lies; left to callers who may execute code.")
    bytes: int | None = Field(None, description="Of its weights on disk.")
    context_length: int | None = Field(None, description="Tokens of prompt and answer together.")
    default: bool = Field(False, description="Whether it answers where no model is named.")
    resident: list[ResidentInfo] = Field(default_factory=list, description="The workers that have it in memory.")


class ProfileInfo(Wire):
    """A remote provider; its key is never told."""

    name: str = Field(description="What `parameters.profile` takes.")
    model: str | None = Field(None, description="The model that it asks for, unless the prompt names another.")
    default: bool = Field(False, description="Whether it answers where nothing is named.")


class ModelList(Wire):
    """`GET /models`."""

    models: list[ModelInfo] = Field(description="Of this machine.")
    profiles: list[ProfileInfo] = Field(default_factory=list, description="Remote providers.")


class Unloaded(Wire):
    """`DELETE /models/{name}`."""

    unloaded: list[str] = Field(description="The names of the models whose memory is free now.")
