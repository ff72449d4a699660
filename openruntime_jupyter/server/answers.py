"""The shapes that only HTTP has: what lists are wrapped in, the envelope, and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from openruntime_jupyter.models import Device, OperationInfo, Session, Task, Timestamp, Wire, Worker
from openruntime_jupyter.runtime.slowly import MOST_IN_BATCH


class ServiceInfo(Wire):
    """`GET /`."""

    name: Literal["OpenRuntime"]
    version: str = Field(description="Of the package, which is that of the API.")
    status: Literal["running"]


class DeviceList(Wire):
    """`GET /devices`."""

    devices: list[Device] = Field(description="GPUs first.")


class WorkerList(Wire):
    """`GET /workers`."""

    workers: list[Worker] = Field(description="The oldest first.")


class SessionList(Wire):
    """`GET /sessions`."""

    sessions: list[Session] = Field(description="The last used first.")


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


class BatchRequest(Wire):
    """Many tasks: the body of `POST /tasks/batch`."""

    # Each is read as a TaskRequest later, so that a wrong one is told in its place and spoils no other.
    tasks: list[Annotated[Any, WithJsonSchema({"$ref": "#/components/schemas/TaskRequest"})]] = Field(
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


def _never_null(schema: dict[str, Any]) -> None:
    """The schema of a field that is left out where it is None."""
    schema.pop("default", None)
    schema.update(schema.pop("anyOf")[0])


def _or_absent(description: str) -> Any:
    return Field(None, description=description, exclude_if=lambda value: value is None, json_schema_extra=_never_null)


class BatchItem(Wire):
    """What became of one task of a batch: it has either of the two."""

    task: Task | None = _or_absent("Its record, without its parameters.")
    error: BatchProblem | None = _or_absent("Why it was not taken.")


class BatchAnswer(Wire):
    """What became of the tasks of a batch."""

    tasks: list[BatchItem] = Field(description="In the order of the request.")
