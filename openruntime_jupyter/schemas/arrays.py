"""Arrays on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openruntime_jupyter.schemas.base import Timestamp, Wire
from openruntime_jupyter.schemas.values import ArrayDtype, ArrayKind

ArrayState = Literal["writing", "ready"]


class ArrayReference(Wire):
    """Reference to an array in the spool."""

    id: str = Field(description="Id of the array.")
    shape: list[int] = Field(description="Shape of the array; empty for a scalar.")
    dtype: str = Field(description="MLX name of the element type, for example `float32`, `bfloat16` or `bool`.")
    bytes: int = Field(description="Size of the elements in bytes.")
    kind: ArrayKind = Field("numpy", description="Original type of the array; a `buffer` is part of a pickled object.")


class ArrayRequest(Wire):
    """Request to allocate an array: the body of `POST /arrays`."""

    shape: list[Annotated[int, Field(ge=0, strict=True)]] = Field(description="Shape of the array; empty for a scalar.", max_length=32)
    dtype: ArrayDtype = Field(description="MLX name of the element type.")
    kind: ArrayKind = Field("numpy", description="Type of the array when a task or client loads it.")


class ArrayInfo(ArrayReference):
    """Array with its state and expiry."""

    state: ArrayState = Field(description="`writing` until the array is complete.")
    size: int = Field(description="Size of the file in bytes.")
    owner: str | None = Field(None, description="User who created the array; null without a login.")
    task_id: str | None = Field(None, description="Id of the task whose result contains the array.")
    created_at: Timestamp = Field(description="Time of creation.")
    expires_at: Timestamp | None = Field(
        None,
        description="Time at which the unused array is deleted; null if it never expires, is being written, or is in use by tasks.",
    )
    leases: int = Field(0, description="Number of pending and running tasks that use the array.")
    path: str | None = Field(None, description="Path of the file, for programs of the same user on the same machine.")


class ArrayPage(Wire):
    """All arrays of a runtime."""

    arrays: list[ArrayInfo] = Field(description="Arrays, newest first.")
    total_bytes: int = Field(description="Size of all array files in bytes, including files that are being deleted.")
    warm_bytes: int = Field(0, description="Size of the free files in bytes, which are kept so that new arrays can be written faster.")
    quota_bytes: int = Field(description="Maximum size of all array files in bytes.")
    timestamp: Timestamp = Field(description="Current time.")
