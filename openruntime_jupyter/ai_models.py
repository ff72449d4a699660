"""The wire types of prompts and models: what `models.py` is to tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's files as the runtime's catalogue found them; `bytes` of its weights as they lie on disk, `context_length` in tokens."""

    name: str
    path: str
    kind: Literal["mlx", "gguf", "hub"]
    bytes: int | None = None
    context_length: int | None = None
