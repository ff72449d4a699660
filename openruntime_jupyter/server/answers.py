"""The shapes that only HTTP has: what lists are wrapped in, the envelope, and batches."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import Field, SkipValidation

from openruntime_jupyter.models import Device, OperationInfo, Task, TaskRequest, Timestamp, Wire
from openruntime_jupyter.runtime.batch import MOST_IN_BATCH


class ServiceInfo(Wire):
    """`GET /`."""

    name: Literal["OpenRuntime"]
    version: str = Field(description="Of the package, which is that of the API.")
    status: Literal["running"]


class DeviceList(Wire):
    """`GET /devices`."""

    devices: list[Device] = Field(description="GPUs first.")


class OperationList(Wire):
    """`GET /operations`."""

    operations: list[OperationInfo]


class Detail(Wire):
    """One thing that is wrong with a request."""

    field: str = Field(description="Its dotted name.")
    problem: str = Field(description="What is wrong with it.")


class ErrorData(Wire):
    """What an error's envelope carries."""

    details: list[Detail]


class ErrorEnvelope(Wire):
    """Every error of every route."""

    status: Literal["error"]
    data: ErrorData | None = Field(description="Where single fields are wrong.")
    error: str = Field(description="What happened, and what to do about it.")
    timestamp: Timestamp


Data = TypeVar("Data")


class SuccessEnvelope(Wire, Generic[Data]):
    """The reference's common format around a successful answer."""

    status: Literal["success"]
    data: Data
    error: None
    timestamp: Timestamp


class BatchRequest(Wire):
    """Many tasks: the body of `POST /tasks/batch`."""

    # Each is checked later, so that a wrong one is told in its place and spoils no other.
    tasks: list[SkipValidation[TaskRequest]] = Field(
        description="What `POST /tasks` takes, each; all of them are asynchronous, whatever their `wait` says.",
        min_length=1,
        max_length=MOST_IN_BATCH,
    )


class BatchProblem(Wire):
    """Why a task of a batch was not taken."""

    code: int = Field(description="The status with which `POST /tasks` would have answered.")
    message: str = Field(description="What is wrong, and what to do about it.")
    details: list[Detail] | None = Field(None, description="Where single fields are wrong.")
    retry_after: int | None = Field(None, description="Seconds after which to try again, where that makes sense.")


class BatchItem(Wire):
    """What became of one task of a batch: either of the two."""

    task: Task | None = Field(None, description="Its record, without its parameters.")
    error: BatchProblem | None = None


class BatchAnswer(Wire):
    """What became of the tasks of a batch."""

    tasks: list[BatchItem] = Field(description="In the order of the request.")
