"""The shapes that only HTTP has: what lists are wrapped in, the envelope, and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from openruntime_jupyter.runtime.cooperative import MOST_IN_BATCH
from openruntime_jupyter.schemas.base import Timestamp, Wire
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, OperationInfo, Worker
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.server.http.requests import LONGEST_WAIT


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
    durable: bool = Field(
        True,
        description="false: the tasks end as `interrupted` if the server ends before they do. Small ones run about three times as fast, "
        "because their states are written to disk together, within 50 ms, and not one by one.",
        strict=True,
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


class ResultsRequest(Wire):
    """Tasks whose results are wanted: the body of `POST /tasks/batch/results`."""

    tasks: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        description="Ids of tasks.", min_length=1, max_length=MOST_IN_BATCH
    )
    at_least: int = Field(1, description="Answer once so many of them have ended, or all.", ge=1, strict=True)
    wait: float = Field(0.0, description="Answer after so many seconds in any case.", ge=0, le=LONGEST_WAIT, allow_inf_nan=False)


class ResultPayload(Wire):
    """The opaque result of a task, as `GET /tasks/{id}/payload` answers it."""

    encoding: str = Field(description="`cloudpickle`: load it only if you trust the task's code.")
    base64: str = Field(description="The bytes, in base64.")


class ResultItem(Wire):
    """A task that has ended."""

    task_id: str
    task: Task | None = _or_absent("Its record, without its parameters.")
    payload: ResultPayload | None = _or_absent("Its opaque result, if it has one of at most 64 KiB: larger ones are fetched one by one.")
    error: BatchProblem | None = _or_absent("Why there is no record: the task is unknown.")


class ResultsAnswer(Wire):
    """The ended ones of some tasks."""

    results: list[ResultItem] = Field(
        description="In the order of the request. An answer ends after about 4 MB: ask again for the tasks that it leaves out."
    )
