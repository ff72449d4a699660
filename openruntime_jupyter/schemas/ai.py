"""Wire types of AI tasks, conversations and language models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Priority, Timestamp, Wire
from openruntime_jupyter.schemas.system import WorkerState
from openruntime_jupyter.schemas.tasks import Failure, NotebookName, Origin, TaskState
from openruntime_jupyter.schemas.values import Engine

DEFAULT_AI_TIMEOUT = 300.0
"""Default time limit of an AI task in seconds."""
LOCAL = "local"
"""Name of the local provider, where a provider or profile is expected."""

Role = Literal["system", "user", "assistant"]
AgentSource = Literal["built-in", "configured"]
ModelKind = Literal["mlx", "gguf", "hub"]


class Message(Wire):
    """Message to or from a model."""

    role: Role = Field(description="Author of the message.")
    content: str = Field(description="Text of the message.")


class About(Wire):
    """Origin of an AI task; part of the parameters of its operation."""

    workflow: str | None = Field(None, description="Name of the workflow.")
    agent: str | None = Field(None, description="Role of the agent whose instructions the model gets; null without an agent.")
    conversation: str | None = Field(None, description="Name of the conversation that the prompt continues.")
    left_out: int = Field(0, description="Number of oldest turns that were omitted because they exceed the model's context.")


class Answer(Wire):
    """Response of a model: the `output` of a completed AI task. Metrics that the provider does not report are null."""

    text: str = Field(description="Generated text.")
    model_used: str | None = Field(None, description="Name of the model as reported by the provider.")
    provider: str = Field(description="`local`, or the name of a profile.")
    finish_reason: str | None = Field(None, description="For example `stop`, or `length` if the response was truncated at `max_tokens`.")
    prompt_tokens: int | None = Field(None, description="Tokens of the prompt.")
    completion_tokens: int | None = Field(None, description="Tokens of the response.")
    tokens_used: int | None = Field(None, description="Tokens of prompt and response together.")
    cached_tokens: int | None = Field(None, description="Tokens of the prompt that were in the key-value cache.")
    tokens_per_second: float | None = Field(None, description="Generation speed of the response.")
    prompt_tokens_per_second: float | None = Field(None, description="Processing speed of the prompt.")
    time_to_first_token_s: float | None = Field(
        None, description="Seconds from the start to the first token, without the load time of a local model."
    )
    load_time_s: float | None = Field(None, description="Seconds to load the local model; null if it was already in memory.")


class AiRequest(Wire):
    """Prompt and its options: the body of `POST /ai/tasks`."""

    workflow_type: str = Field(description="Name of a workflow; `GET /ai/workflows` lists them.", min_length=1, max_length=100)
    prompt: str = Field(description="Text of the prompt.", min_length=1)
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the workflow. Omitted parameters are not sent to the model."
    )
    timeout: float = Field(
        DEFAULT_AI_TIMEOUT,
        description="Maximum run time in seconds, after which the task is stopped.",
        gt=0,
        le=31_536_000,
        allow_inf_nan=False,
    )
    stream: bool = Field(False, description="true: send the text as server-sent events while the model generates it.", strict=True)
    wait: bool = Field(True, description="false: respond with 202 immediately; the task continues if the client disconnects.", strict=True)
    priority: Priority = Field(5, description="1 to 10; 10 is the most urgent.")
    device_preference: str = Field(
        "auto", description="Device of a local model: `auto`, `gpu`, `cpu`, or a device id.", min_length=1, max_length=100
    )
    retries: int = Field(0, description="Maximum number of retries if the worker process dies.", ge=0, le=10, strict=True)
    name: str | None = Field(None, description="Display name; null for the name of the workflow.", max_length=200)
    notebook: NotebookName | None = Field(None, description="Path or name of the notebook that submits the prompt; null outside notebooks.")
    origin: Origin = Field("rest", description="Interface that submitted the task.")


class TokenEvent(Wire):
    """Piece of generated text: the data of a server-sent event `token`."""

    text: str = Field(description="Text of the piece.")
    index: int = Field(
        description="Number of preceding characters (code points). 0 again: the worker died, the task was retried and the text starts over."
    )


class AiTask(Wire):
    """AI task as returned by `POST /ai/tasks`; `GET /tasks/{id}` returns the full record."""

    task_id: str = Field(description="Id of the task. It begins with `ai_task_`; ids sort by submission time.")
    status: TaskState = Field(description="State of the task.")
    result: str | None = Field(description="Text of the response, for a completed task.")
    model_used: str | None = Field(description="Name of the model as reported by the provider.")
    tokens_used: int | None = Field(description="Tokens of prompt and response together; null if the provider does not report them.")
    execution_time: float | None = Field(description="Seconds since the start, until the task finished or until now.")
    workflow_type: str | None = Field(None, description="Name of the workflow.")
    agent: str | None = Field(None, description="Role of the agent whose instructions the model got.")
    conversation: str | None = Field(None, description="Name of the conversation that contains the prompt.")
    left_out: int = Field(0, description="Number of oldest turns that were omitted because they exceed the model's context.")
    unverified_numbers: list[str] = Field(
        default_factory=list,
        description="For `system_analysis`: numbers in `result` that are not in the model's input. The model computed or invented them.",
    )
    answer: Answer | None = Field(None, description="Text and metrics of the response, for a completed task.")
    error: str | None = Field(None, description="One-line error message, unless the task completed.")
    failure: Failure | None = Field(None, description="Details of the failure, unless the task completed.")
    position: int | None = Field(None, description="Position in the queue while the task is pending; 1 is next.")
    waiting_for: str | None = Field(None, description="Reason why a pending task cannot start, other than its position in the queue.")
    timestamp: Timestamp = Field(description="Time of the last state change.")


class AgentInfo(Wire):
    """Agent: a role with instructions for the model."""

    role: str = Field(description="Value of `parameters.agent` that selects this agent.")
    name: str = Field(description="Display name.")
    description: str = Field(description="Purpose of the agent.")
    capabilities: list[str] = Field(description="Capabilities, for example `code_generation`.")
    source: AgentSource = Field("built-in", description="`configured` for an agent from the configured folder.")


class AgentList(Wire):
    """Response of `GET /ai/agents`."""

    agents: list[AgentInfo] = Field(description="Agents by role.")
    problems: list[str] = Field(
        default_factory=list, description="Files in the configured folder that could not be used, each with a suggested fix."
    )


class WorkflowInfo(Wire):
    """Workflow: a purpose of AI tasks."""

    name: str = Field(description="Value of `workflow_type` in `POST /ai/tasks`.")
    summary: str = Field(description="One-line summary.")
    agent: str | None = Field(description="Default agent; null without an agent.")
    context: str = Field(description="Information that the model gets in addition to the prompt.")
    parameters_schema: dict[str, Any] = Field(description="JSON schema of the parameters.")


class WorkflowList(Wire):
    """Response of `GET /ai/workflows`."""

    workflows: list[WorkflowInfo] = Field(description="Workflows of the server.")


class Turn(Wire):
    """Prompt of a conversation and its response."""

    task_id: str = Field(description="Id of the task.")
    prompt: str = Field(description="Text of the prompt.")
    answer: str = Field(description="Text of the response.")
    model_used: str | None = Field(None, description="Name of the model as reported by the provider.")
    timestamp: Timestamp = Field(description="Time of the response.")


class ConversationInfo(Wire):
    """Summary of a conversation, without its messages."""

    name: str = Field(description="Name of the conversation.")
    owner: str | None = Field(None, description="User who owns the conversation; null without a login.")
    turns: int = Field(description="Number of prompts with a response.")
    started_at: Timestamp = Field(description="Submission time of the first prompt.")
    timestamp: Timestamp = Field(description="Time of the last response.")


class Conversation(ConversationInfo):
    """Conversation with its messages."""

    messages: list[Turn] = Field(description="Messages in the order in which the prompts were submitted.")


class ConversationList(Wire):
    """Response of `GET /ai/conversations`, most recently used first."""

    conversations: list[ConversationInfo] = Field(description="Conversations, most recently used first.")


class ResidentInfo(Wire):
    """Worker that keeps a model in memory."""

    lane: str = Field(description="Id of the device.")
    state: WorkerState = Field(description="State of the worker.")
    resident_bytes: int | None = Field(None, description="Resident memory of the worker in bytes; null if unknown.")
    idle_seconds: float | None = Field(None, description="Seconds since the last prompt; null while the worker is busy.")
    keep_alive_seconds: float = Field(description="Seconds that the model stays in memory without a prompt.")
    task_id: str | None = Field(None, description="Id of the task that the worker runs.")


class ModelInfo(Wire):
    """Local model, and the workers that keep it in memory."""

    name: str = Field(description="Value of `parameters.model` that selects this model.")
    kind: ModelKind | None = Field(None, description="Format of the model; null if its files are no longer available.")
    engine: Engine | None = Field(None, description="Library that runs the model; null if its files are no longer available.")
    path: str | None = Field(None, description="Path of the files; only for callers who have the permission to execute code.")
    bytes: int | None = Field(None, description="Size of the weights on disk in bytes.")
    context_length: int | None = Field(None, description="Maximum number of tokens of prompt and response together.")
    default: bool = Field(False, description="true for the model that is used if a prompt names no model.")
    resident: list[ResidentInfo] = Field(default_factory=list, description="Workers that keep the model in memory.")


class ProfileInfo(Wire):
    """Remote provider. Its API key is never included."""

    name: str = Field(description="Value of `parameters.profile` that selects this provider.")
    model: str | None = Field(None, description="Default model of the provider.")
    default: bool = Field(False, description="true for the provider that is used if a prompt names neither a profile nor a model.")


class ModelList(Wire):
    """Response of `GET /models`."""

    models: list[ModelInfo] = Field(description="Local models.")
    profiles: list[ProfileInfo] = Field(default_factory=list, description="Remote providers.")


class Unloaded(Wire):
    """Response of `DELETE /models/{name}`."""

    unloaded: list[str] = Field(description="Names of the models that were unloaded.")
