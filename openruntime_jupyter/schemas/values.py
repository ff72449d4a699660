"""What workers and the wire types both speak of, in plain Python: a worker starts in half the time without the wire types."""

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
"""The element types of MLX."""

ArrayKind = Literal["numpy", "mlx", "buffer"]
"""What an array was where it came from; a buffer is part of something that was pickled."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's files as the runtime's catalogue found them; what is None can't be told before it is loaded.

    `bytes` are those of its weights as they lie on disk, `float32_bytes` as 32-bit numbers; `context_length` is in tokens, and
    `cache_numbers` is how many numbers its key-value cache keeps for each. `converted` is the folder for weights in another form.
    """

    name: str
    path: str
    kind: Literal["mlx", "gguf", "hub"]
    bytes: int | None = None
    context_length: int | None = None
    float32_bytes: int | None = None
    cache_numbers: int | None = None
    converted: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How a local model is to write. What is None, or not in `sampling`, is left to mlx-lm; `sampling` has temp, top_p, top_k and min_p."""

    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
