"""Wire types of `/v1`: chat completions and models in the format of OpenAI's API, for programs that support it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from openruntime_jupyter.schemas.ai import DEFAULT_AI_TIMEOUT, Message, ResponseOptions, TokenLogprob, ToolCall
from openruntime_jupyter.schemas.base import Wire, absent, wrong
from openruntime_jupyter.schemas.queries import Query
from openruntime_jupyter.schemas.tasks import NotebookName

HEADERS = {
    "priority": "X-OpenRuntime-Priority",
    "name": "X-OpenRuntime-Name",
    "notebook": "X-OpenRuntime-Notebook",
    "timeout": "X-OpenRuntime-Timeout",
}
"""Headers of a request by the field of `CompletionHeaders`."""

CompletionEnd = Literal["stop", "length", "tool_calls", "content_filter"]


class CompletionHeaders(Query):
    """Options of the task of a chat completion, each a header of the request."""

    priority: int = Field(5, description="Priority of the task, 1 to 10; 10 is the most urgent.", ge=1, le=10)
    name: str | None = Field(None, description="Display name of the task.", min_length=1, max_length=200)
    notebook: NotebookName | None = Field(None, description="Path or name of the notebook that the task belongs to.")
    timeout: float = Field(
        DEFAULT_AI_TIMEOUT,
        description="Maximum run time in seconds, after which the task is stopped.",
        gt=0,
        le=31_536_000,
        allow_inf_nan=False,
    )


class ChatMessage(Message):
    """Message of a conversation. A message that a response contained can be sent as it is."""

    reasoning_content: str | None = absent("Same as `reasoning`.")
    refusal: str | None = absent("Refusal of an assistant's message. It is not sent to the model.")
    annotations: list[Any] | None = absent("Annotations of an assistant's message. They are not sent to the model.")
    audio: None = absent("Always null.")
    function_call: None = absent("Always null: use `tool_calls`.")


class StreamOptions(Wire):
    """Options of a streamed response."""

    include_usage: bool = Field(False, description="true: the last chunk has `usage` and no choices.")
    include_obfuscation: bool = Field(False, description="Has no effect: chunks have no padding.")


StopText = Annotated[str, Field(min_length=1, max_length=200)]


MOST_STOPS = 16
"""Maximum number of texts in `stop`."""
MOST_BIASES = 1000
"""Maximum number of tokens in `logit_bias`."""


def _texts(stop: Any) -> Any:
    """Return the texts; raise one pydantic error instead of those for both types."""
    if stop is not None and not isinstance(stop, str) and not (isinstance(stop, list) and all(isinstance(each, str) for each in stop)):
        raise wrong("must be a text or a list of texts")
    if isinstance(stop, list) and len(stop) > MOST_STOPS:
        raise wrong(f"has {len(stop):,} texts, and at most {MOST_STOPS} are allowed")
    return stop


def _few(biases: Any) -> Any:
    """Return the biases; raise a pydantic error for too many, before each one may be wrong."""
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise wrong(f"has {len(biases):,} tokens, and at most {MOST_BIASES:,} are allowed")
    return biases


class ChatCompletionRequest(ResponseOptions):
    """Messages and options: the body of `POST /v1/chat/completions`. Options that are null or missing are not passed to the model."""

    model: str | None = Field(
        None, description="Id of a model as in `GET /v1/models`; `default`, empty or null for the default model.", max_length=4096
    )
    messages: list[ChatMessage] = Field(description="Messages in order.", min_length=1, max_length=10_000)
    stream: bool | None = Field(None, description="true: send server-sent events while the model generates the response.")
    stream_options: StreamOptions | None = Field(None, description="Options of a streamed response.")
    max_tokens: int | None = Field(None, description="Maximum tokens of the response.", ge=1, le=10_000_000, strict=True)
    max_completion_tokens: int | None = Field(None, description="Same as `max_tokens`.", ge=1, le=10_000_000, strict=True)
    temperature: float | None = Field(
        None,
        description="0, and the default of local models: the most likely token is chosen.",
        ge=0,
        le=10,
        allow_inf_nan=False,
    )
    top_p: float | None = Field(None, description="Choose from the most likely tokens with this total probability.", ge=0, le=1)
    top_k: int | None = Field(None, description="Choose from this number of most likely tokens.", ge=1, strict=True)
    min_p: float | None = Field(None, description="Choose from tokens with at least this fraction of the highest probability.", ge=0, le=1)
    seed: int | None = Field(None, description="Seed of the random choices.", strict=True)
    stop: Annotated[str | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None, BeforeValidator(_texts)] = Field(
        None, description=f"Text, or up to {MOST_STOPS} texts, before which the response ends."
    )
    n: int | None = Field(None, description="Number of responses: 1.", ge=1, strict=True)
    repetition_penalty: float | None = Field(None, description="Above 1: makes recent tokens less likely.", gt=0, le=10)
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_few)] = Field(
        None, description="Change of the probability of tokens by their id, for remote models."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: the response has at most one tool call.")
    logprobs: bool | None = Field(None, description="true: return the log-probability of each token.")  # type: ignore[assignment]
    user: str | None = Field(None, description="Passed to remote models.", max_length=1000)
    safety_identifier: str | None = Field(None, description="Passed to remote models.", max_length=1000)
    prompt_cache_key: str | None = Field(None, description="Passed to remote models.", max_length=1000)
    metadata: dict[str, Any] | None = Field(None, description="Passed to remote models.")
    store: bool | None = Field(None, description="Passed to remote models. Every task is in the history.")
    service_tier: str | None = Field(None, description="Passed to remote models.", max_length=100)
    modalities: list[Literal["text"]] | None = Field(None, description="Only `text`.", max_length=1)


class PromptTokensDetails(Wire):
    """Details of the tokens of a prompt."""

    cached_tokens: int = Field(description="Tokens that were in the key-value cache of a previous prompt; 0 if unknown.")


class CompletionUsage(Wire):
    """Numbers of tokens; 0 if the model does not report them."""

    prompt_tokens: int = Field(description="Tokens of the prompt.")
    completion_tokens: int = Field(description="Tokens of the response.")
    total_tokens: int = Field(description="Tokens of prompt and response together.")
    prompt_tokens_details: PromptTokensDetails = Field(description="Details of the prompt.")


class ChoiceLogprobs(Wire):
    """Probabilities of the tokens of a response."""

    content: list[TokenLogprob] | None = Field(description="Tokens of the text in order.")
    refusal: None = Field(None, description="Always null.")


class CompletionMessage(Wire):
    """Message of a response."""

    role: Literal["assistant"] = Field("assistant", description="Always `assistant`.")
    content: str | None = Field(description="Text of the response; null if there are only tool calls.")
    refusal: None = Field(None, description="Always null.")
    reasoning_content: str | None = absent("Reasoning of the model, if it has one.")
    tool_calls: list[ToolCall] | None = absent("Tools that the model calls, if there are any.")


class CompletionChoice(Wire):
    """Response of a model."""

    index: int = Field(0, description="Always 0.")
    message: CompletionMessage = Field(description="Message of the response.")
    finish_reason: CompletionEnd = Field(description="Reason for the end of the response.")
    logprobs: ChoiceLogprobs | None = Field(None, description="Probabilities of the tokens, if requested.")


class ChatCompletion(Wire):
    """Response of `POST /v1/chat/completions`."""

    id: str = Field(description="Id of the task.")
    object: Literal["chat.completion"] = Field("chat.completion", description="Always `chat.completion`.")
    created: int = Field(description="Time of the response in seconds since 1970.")
    model: str = Field(description="Id of the model as in `GET /v1/models`.")
    choices: list[CompletionChoice] = Field(description="One response.")
    usage: CompletionUsage = Field(description="Numbers of tokens.")


class FunctionDelta(Wire):
    """Piece of the function that a model calls."""

    name: str | None = absent("Name of the function, in the first piece of the call.")
    arguments: str = Field(description="Next piece of the arguments, which are JSON text.")


class ToolCallDelta(Wire):
    """Piece of a tool call."""

    index: int = Field(description="Position of the call.")
    id: str | None = absent("Id of the call, in its first piece.")
    type: Literal["function"] | None = absent("Always `function`, in the first piece of the call.")
    function: FunctionDelta = Field(description="Piece of the function.")


class Delta(Wire):
    """Part of a response. Fields without a part in this chunk are omitted."""

    role: Literal["assistant"] | None = absent("Author of the message, in the first chunk.")
    content: str | None = absent("Next piece of the text.")
    reasoning_content: str | None = absent("Next piece of the reasoning of the model.")
    tool_calls: list[ToolCallDelta] | None = absent("Next piece of a tool call.")


class ChunkChoice(Wire):
    """Part of the response of a model."""

    index: int = Field(0, description="Always 0.")
    delta: Delta = Field(description="Part of the message.")
    finish_reason: CompletionEnd | None = Field(None, description="Reason for the end of the response, in its last chunk.")
    logprobs: ChoiceLogprobs | None = Field(None, description="Probabilities of all tokens of the text, in its last chunk.")


class ChatCompletionChunk(Wire):
    """Server-sent event of a streamed response. `data: [DONE]` follows the last one."""

    id: str = Field(description="Id of the task.")
    object: Literal["chat.completion.chunk"] = Field("chat.completion.chunk", description="Always `chat.completion.chunk`.")
    created: int = Field(description="Time of the first chunk in seconds since 1970.")
    model: str = Field(description="Id of the model as in `GET /v1/models`.")
    choices: list[ChunkChoice] = Field(description="One part; empty in the chunk with `usage`.")
    usage: CompletionUsage | None = absent("Numbers of tokens, in an additional last chunk, if requested.")


class ModelEntry(Wire):
    """Model that can be named in a chat completion."""

    id: str = Field(description="Name of a local model, `PROFILE/MODEL` for a remote one, or `default`.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    created: int = Field(0, description="Always 0.")
    owned_by: str = Field(description="`local`, or the name of the profile.")


class ModelEntries(Wire):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[ModelEntry] = Field(description="Models.")


class OpenAiProblem(Wire):
    """Description of an error in the format of OpenAI's API."""

    message: str = Field(description="Error message with a suggested fix.")
    type: str = Field(description="Kind of the error, for example `invalid_request_error`.")
    param: str | None = Field(description="Parameter or header of the request with the problem; null for other errors.")
    code: str | None = Field(description="Code of the error for programs.")


class OpenAiError(Wire):
    """Response for every error of `/v1`."""

    error: OpenAiProblem = Field(description="The error.")
