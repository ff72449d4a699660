"""Arrays on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire
from openruntime_jupyter.schemas.values import ArrayDtype, ArrayKind


class ArrayReference(Wire):
    """An array in the spool."""

    id: str
    shape: list[int]
    dtype: str = Field(description="As MLX calls it: `float32`, `bfloat16`, `bool` and so on.")
    bytes: int = Field(description="Bytes of its elements.")
    kind: ArrayKind = "numpy"


class ArrayRequest(Wire):
    """Room that is asked for: the body of `POST /arrays`."""

    shape: list[Annotated[int, Field(ge=0, strict=True)]] = Field(description="May be empty, for a single number.", max_length=32)
    dtype: ArrayDtype = Field(description="As MLX calls it.")
    kind: ArrayKind = Field("numpy", description="What it is to be where it is used.")


class ArrayInfo(ArrayReference):
    """An array, and what becomes of it."""

    state: Literal["writing", "ready"]
    size: int = Field(description="Bytes of its file.")
    owner: str | None = None
    task_id: str | None = Field(None, description="The task whose result it is.")
    created_at: Timestamp
    expires_at: Timestamp | None = Field(
        None, description="When it is deleted unless it is used before; null: never, or not while it is written or tasks use it."
    )
    leases: int = Field(0, description="How many tasks that wait or run use it.")
    path: str | None = Field(None, description="Its file, for programs of the same user on the same machine.")


class ArrayPage(Wire):
    """Every array of a runtime."""

    arrays: list[ArrayInfo]
    total_bytes: int = Field(description="Bytes of all files, those that are just being deleted included.")
    warm_bytes: int = Field(0, description="Bytes of free files beside them, kept so that new arrays are written faster.")
    quota_bytes: int = Field(description="Bytes that they may have together.")
    timestamp: Timestamp
