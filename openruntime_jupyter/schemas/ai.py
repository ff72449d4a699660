"""Wire types of AI tasks, conversations and language models."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from openruntime_jupyter.schemas.base import Priority, Timestamp, Wire, absent, wrong
from openruntime_jupyter.schemas.system import WorkerState
from openruntime_jupyter.schemas.tasks import Failure, NotebookName, Origin, TaskState
from openruntime_jupyter.schemas.values import Engine, ModelAbility

DEFAULT_AI_TIMEOUT = 300.0
"""Default time limit of an AI task in seconds."""
LOCAL = "local"
"""Name of the local provider, where a provider or profile is expected."""

MOST_TOOLS = 128
"""Maximum number of tools of a prompt, and of calls in a message; the limit of OpenAI."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
ResponseType = Literal["text", "json_object", "json_schema"]
ToolMode = Literal["none", "auto", "required"]
AgentSource = Literal["built-in", "configured"]
ModelKind = Literal["mlx", "gguf", "hub"]


def _joined(content: Any) -> Any:
    """Return the text of a list of text parts, and any other content unchanged."""
    if not isinstance(content, list):
        return content
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(f"part {number} is not a text part: only text is supported, as {{'type': 'text', 'text': ...}}")
    return "".join(part["text"] for part in content)


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionCall(Wire):
    """Function that a model calls."""

    name: str = Field(description="Name of the function.", min_length=1)
    arguments: str = Field(description="Arguments by name, as JSON text. A model without a constraint may write invalid JSON.")


class ToolCall(Wire):
    """Call of a tool by a model. The caller runs the function and sends its result as a message of the role `tool`."""

    id: str = Field(description="Id of the call, for `tool_call_id`.", min_length=1)
    type: Literal["function"] = Field("function", description="Always `function`.")
    function: FunctionCall = Field(description="Function with its arguments.")


class Message(Wire):
    """Message to or from a model."""

    role: Role = Field(description="Author of the message. `developer` is another name of `system`.")
    content: Annotated[str | None, BeforeValidator(_joined)] = Field(
        None,
        description="Text of the message. A list of text parts is joined. null only for an assistant's message with tool calls.",
    )
    name: str | None = absent("Name of the author, for example of the function whose result this is.")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = absent("Tool calls of the assistant.")
    tool_call_id: str | None = absent("Id of the tool call whose result this is; required for the role `tool`.")
    reasoning: str | None = absent("Reasoning of the assistant before it called tools. Some models need it to continue.")

    @property
    def text(self) -> str:
        """Return the text of the message, empty if it only has tool calls."""
        return self.content or ""

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> Message:
        if self.role == "tool" and not self.tool_call_id:
            raise wrong("a message of the role tool needs tool_call_id, the id of the tool call whose result it is")
        if self.role != "tool" and self.tool_call_id is not None:
            raise wrong(f"tool_call_id is only for the role tool, not for {self.role}")
        if self.role != "assistant" and self.tool_calls is not None:
            raise wrong(f"tool_calls is only for the role assistant, not for {self.role}")
        if self.content is None and not self.tool_calls:
            raise wrong("content is required, except for an assistant's message with tool_calls")
        return self


class FunctionDefinition(Wire):
    """Function that a model may call."""

    name: FunctionName = Field(description="Name of the function: letters, digits, `_` and `-`.")
    description: str | None = absent("Purpose of the function, for the model.")
    parameters: dict[str, Any] | None = absent("JSON schema of the arguments. Omit it for a function without arguments.")
    strict: bool | None = absent("true: the arguments must fit the schema exactly, if the provider supports it.")


class Tool(Wire):
    """Tool that a model may call."""

    type: Literal["function"] = Field("function", description="Always `function`.")
    function: FunctionDefinition = Field(description="Function that the caller runs.")


class ChosenFunction(Wire):
    """Name of the function that a model must call."""

    name: FunctionName = Field(description="Name of one of the tools.")


class ChosenTool(Wire):
    """Tool that a model must call."""

    type: Literal["function"] = Field("function", description="Always `function`.")
    function: ChosenFunction = Field(description="Function that must be called.")


class ResponseSchema(Wire):
    """JSON schema of a response."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    name: FunctionName = Field("response", description="Name of the schema: letters, digits, `_` and `-`.")
    description: str | None = absent("Purpose of the response, for the model.")
    schema_: dict[str, Any] = Field(alias="schema", description="JSON schema that the text of the response fits.")
    strict: bool | None = absent("true: the text must fit the schema exactly, if the provider supports it.")


class ResponseFormat(Wire):
    """Format of the text of a response."""

    type: ResponseType = Field(description="`json_object`: any JSON object. `json_schema`: JSON that fits `json_schema`.")
    json_schema: ResponseSchema | None = absent("Schema of the text, for the type `json_schema`.")

    @model_validator(mode="after")
    def _schema_fits_the_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise wrong("the type json_schema and the field json_schema require each other")
        return self


def _unique(tools: list[Tool]) -> list[Tool]:
    repeated = [name for name, count in Counter(tool.function.name for tool in tools).items() if count > 1]
    if repeated:
        raise wrong(f"has several functions named {repeated[0]!r}: give each its own name")
    return tools


def _mode_or_tool(choice: Any) -> Any:
    if choice is None or isinstance(choice, (dict, ChosenTool)) or choice in get_args(ToolMode):
        return choice
    raise wrong("must be 'none', 'auto', 'required', or {'type': 'function', 'function': {'name': ...}}")


class ResponseOptions(Wire):
    """Options of a response that not every model supports. One that a model does not support is rejected by name."""

    response_format: ResponseFormat | None = Field(None, description="Format of the text; null for any text.")
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MOST_TOOLS), AfterValidator(_unique)] | None = Field(
        None, description="Functions that the model may call; the caller runs them."
    )
    tool_choice: Annotated[ToolMode | ChosenTool | None, BeforeValidator(_mode_or_tool)] = Field(
        None, description="`none`, `auto` (the default), `required` for at least one call, or the function that must be called."
    )
    # Not a Literal: providers and chat templates have further values.
    reasoning_effort: str | None = Field(
        None,
        description="Amount of reasoning before the text, such as `none`, `minimal`, `low`, `medium`, `high` or `xhigh`, as far as the "
        "model has it; null for the default of the model.",
        min_length=1,
        max_length=50,
    )
    logprobs: bool = Field(False, description="true: return the log-probability of each token.", strict=True)
    top_logprobs: int | None = Field(
        None, description="With `logprobs`: number of the most likely tokens to return at each position.", ge=0, le=20, strict=True
    )
    presence_penalty: float | None = Field(
        None, description="Above 0: makes tokens less likely that are already in the text.", ge=-2, le=2, allow_inf_nan=False
    )
    frequency_penalty: float | None = Field(
        None, description="Above 0: makes tokens less likely the more often they are in the text.", ge=-2, le=2, allow_inf_nan=False
    )

    @field_validator("tool_choice")
    @classmethod
    def _is_a_tool(cls, choice: ToolMode | ChosenTool | None, info: ValidationInfo) -> ToolMode | ChosenTool | None:
        if choice is None or "tools" not in info.data:  # invalid tools have an error already
            return choice
        tools: list[Tool] | None = info.data["tools"]
        if tools is None:
            raise wrong("requires tools")
        names = [tool.function.name for tool in tools]
        if isinstance(choice, ChosenTool) and choice.function.name not in names:
            raise wrong(f"names the function {choice.function.name!r}, but tools has {', '.join(names)}")
        return choice

    @field_validator("top_logprobs")
    @classmethod
    def _has_logprobs(cls, number: int | None, info: ValidationInfo) -> int | None:
        if number is not None and not info.data.get("logprobs", True):
            raise wrong("requires logprobs: true")
        return number


class TopLogprob(Wire):
    """Token with its log-probability."""

    token: str = Field(description="Text of the token.")
    logprob: float = Field(description="Natural logarithm of its probability, before sampling options apply.")
    bytes: list[int] | None = Field(None, description="UTF-8 bytes of the token, which may be a part of a character; null if unknown.")


class TokenLogprob(TopLogprob):
    """Token of a response with its log-probability and the most likely tokens in its place."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list, description="The most likely tokens, most likely first.")


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
    reasoning: str | None = Field(None, description="Reasoning of the model before the text; null without any.")
    tool_calls: list[ToolCall] | None = Field(None, description="Tool calls; null without any.")
    logprobs: list[TokenLogprob] | None = Field(None, description="Log-probabilities of the tokens of the response, if requested.")
    finish_reason: str | None = Field(
        None, description="For example `stop`, `tool_calls`, or `length` if the response was truncated at `max_tokens`."
    )
    prompt_tokens: int | None = Field(None, description="Tokens of the prompt.")
    cached_tokens: int | None = Field(None, description="Tokens of the prompt that were taken from the key-value cache.")
    completion_tokens: int | None = Field(None, description="Tokens of the response.")
    tokens_used: int | None = Field(None, description="Tokens of prompt and response together.")
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
        "auto",
        description="Device of a local model: `auto`, `gpu`, `cpu`, the id of a device or the name of a host.",
        min_length=1,
        max_length=100,
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


class ReasoningEvent(Wire):
    """Piece of the reasoning before the text: the data of a server-sent event `reasoning`."""

    text: str = Field(description="Text of the piece.")
    index: int = Field(description="Number of preceding characters of the reasoning; 0 again if it starts over.")


class ToolCallEvent(Wire):
    """Piece of a tool call: the data of a server-sent event `tool_call`."""

    index: int = Field(description="Position of the call in the response.")
    id: str | None = absent("Id of the call, in its first piece.")
    name: str | None = absent("Name of the function, in the first piece of the call.")
    arguments: str = Field(description="Next piece of the arguments, which are JSON text; empty in the first piece of the call.")


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
    quantisation: str | None = Field(
        None, description="Type of the weights, for example `Q4_K_M`, `4 bits` or `bfloat16`; null if unknown."
    )
    bytes: int | None = Field(None, description="Size of the weights on disk in bytes.")
    context_length: int | None = Field(None, description="Maximum number of tokens of prompt and response together.")
    memory_bytes: int | None = Field(
        None, description="Memory in bytes that the model needs when loaded, with a short prompt; null if unknown. See `resident`."
    )
    tokens_per_second: float | None = Field(None, description="Generation speed of the newest measured response; null without one.")
    prompt_tokens_per_second: float | None = Field(
        None, description="Processing speed of the prompt of that response; null if it was not measured."
    )
    abilities: list[ModelAbility] = Field(
        default_factory=list,
        description="`chat`: messages, otherwise only plain prompts. `tools`: calls of tools. `reasoning`: reasons before the text. "
        "`schema`: text that fits a JSON schema. `logprobs`: log probabilities of tokens.",
    )
    default: bool = Field(False, description="true for the model that is used if a prompt names no model.")
    hosts: list[str] = Field(default_factory=list, description="Names of the other hosts that have the model.")
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
