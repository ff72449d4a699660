"""Types shared by workers and wire types, without pydantic: importing the wire types would double the start time of a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ArrayDtype = Literal[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
]
"""Element types of MLX."""

ArrayKind = Literal["numpy", "mlx", "buffer"]
"""Original type of an array; a buffer is part of a pickled object."""


LEASE_HEADER = "OpenRuntime-Lease"
LEASED = "flock"
"""Header and value of a request whose program holds a shared flock on each array file that it opens by path."""


Engine = Literal["llama.cpp", "mlx-lm"]
ModelAbility = Literal["chat", "tools", "reasoning", "schema", "logprobs"]
"""Messages, calls of tools, reasoning apart from the text, responses that fit a JSON schema, and log probabilities."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Files of a model as found by the runtime's catalogue. A field is None if its value is unknown until the model is loaded.

    The `path` is empty for a model that only other hosts have.

    `bytes` is the size of the weights on disk, `float32_bytes` their size as 32-bit numbers. `context_length` is in tokens, and
    `cache_numbers` is the number of values per token in the key-value cache. `adapter` is the path of a
    LoRA adapter, which counts in `bytes`. `modified` is the time in nanoseconds when the weights of the model or its adapter were written
    last. New weights of the same size, as after another training, make another source, so that the model is loaded again.
    `quantisation` is the type of the weights, such as `Q4_K_M`, `4 bits` or `bfloat16`. `abilities` are those that the chat template has.
    """

    name: str
    path: str
    kind: Literal["mlx", "gguf", "hub"]
    bytes: int | None = None
    context_length: int | None = None
    float32_bytes: int | None = None
    cache_numbers: int | None = None
    adapter: str | None = None
    modified: int | None = None
    quantisation: str | None = None
    abilities: tuple[ModelAbility, ...] = ()

    def is_copy(self, other: ModelSource) -> bool:
        """Return whether both are the same model, perhaps on different hosts."""
        return (self.name, self.kind, self.bytes) == (other.name, other.kind, other.bytes)

    @property
    def engine(self) -> Engine:
        """Return the library that runs the model."""
        return "llama.cpp" if self.kind == "gguf" else "mlx-lm"


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Generation options of a local model. Options that are None, empty or not in `sampling` have no effect.

    The keys of `sampling` are temp, top_p, top_k and min_p. `schema` is a JSON schema that the text must fit. `tools` are functions in
    OpenAI's form that the model may call, or must call if `call_required`. `logprobs` is the number of most likely tokens to return with
    the log-probability of each token. Without `streamed` the text is only part of the response.
    """

    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    call_required: bool = False
    streamed: bool = True
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """Next piece of the tool call at position `index` of a response. The first piece of a call has its id and name."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponsePiece:
    """Next piece of a response while a model generates it: of the text, of the reasoning before it, or of a tool call."""

    text: str = ""
    reasoning: str = ""
    call: ToolCallPiece | None = None


def piece_of(fields: dict[str, Any]) -> ResponsePiece:
    """Return the piece of a response with these fields; missing ones are empty."""
    call = fields.get("call")
    return ResponsePiece(fields.get("text", ""), fields.get("reasoning", ""), None if call is None else ToolCallPiece(**call))


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """Piece of text and the number of characters before it. A later piece with index 0 starts a new attempt."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Piece of the reasoning before the text, and the number of characters of reasoning before it."""

    index: int
    text: str
