"""Wire types that only HTTP needs: lists, the error envelope and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from openruntime_jupyter.runtime.tasks.batch import MOST_IN_BATCH
from openruntime_jupyter.schemas.base import Timestamp, Wire
from openruntime_jupyter.schemas.sessions import Session
from openruntime_jupyter.schemas.system import Device, OperationInfo, Worker
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.server.http.requests import LONGEST_WAIT


class ServiceInfo(Wire):
    """Response of `GET /`."""

    name: Literal["OpenRuntime"]
    version: str = Field(description="Version of the package and of the API.")
    status: Literal["running"]


class DeviceList(Wire):
    """Response of `GET /devices`."""

    devices: list[Device] = Field(description="Devices, GPUs first.")


class WorkerList(Wire):
    """Response of `GET /workers`."""

    workers: list[Worker] = Field(description="Workers, oldest first.")


class SessionList(Wire):
    """Response of `GET /sessions`."""

    sessions: list[Session] = Field(description="Sessions, most recently used first.")


class OperationList(Wire):
    """Response of `GET /operations`."""

    operations: list[OperationInfo]


class Detail(Wire):
    """Problem with one field of a request."""

    field: str = Field(description="Dotted name of the field.")
    problem: str = Field(description="Description of the problem.")


class ErrorData(Wire):
    """Data of an error envelope."""

    details: list[Detail]


class ErrorEnvelope(Wire):
    """Response for every error of every route."""

    status: Literal["error"]
    data: ErrorData | None = Field(description="Problems with individual fields, if any.")
    error: str = Field(description="Error message with a suggested fix.")
    timestamp: Timestamp


class BatchRequest(Wire):
    """Tasks to submit: the body of `POST /tasks/batch`."""

    # Each item is validated as a TaskRequest later, so that an invalid one does not affect the others.
    tasks: list[Annotated[Any, WithJsonSchema({"$ref": "#/components/schemas/TaskRequest"})]] = Field(
        description="Bodies of `POST /tasks`. All tasks are asynchronous; `wait` is ignored.",
        min_length=1,
        max_length=MOST_IN_BATCH,
    )
    durable: bool = Field(
        True,
        description="false: unfinished tasks become `interrupted` if the server stops. Small tasks run about three times as fast, "
        "because their states are written to disk in batches within 50 ms instead of one by one.",
        strict=True,
    )


class BatchProblem(Wire):
    """Reason why a task of a batch was rejected."""

    code: int = Field(description="Status that `POST /tasks` would have returned.")
    message: str = Field(description="Error message with a suggested fix.")
    details: list[Detail] | None = Field(None, description="Problems with individual fields, if any.")
    retry_after: int | None = Field(None, description="Seconds to wait before a retry, if a retry can succeed.")


def _never_null(schema: dict[str, Any]) -> None:
    """Adapt the schema of a field that is omitted if it is None."""
    schema.pop("default", None)
    schema.update(schema.pop("anyOf")[0])


def _or_absent(description: str) -> Any:
    return Field(None, description=description, exclude_if=lambda value: value is None, json_schema_extra=_never_null)


class BatchItem(Wire):
    """Outcome of one task of a batch: either a task or an error."""

    task: Task | None = _or_absent("Record of the task, without parameters.")
    error: BatchProblem | None = _or_absent("Reason why the task was rejected.")


class BatchAnswer(Wire):
    """Outcomes of the tasks of a batch."""

    tasks: list[BatchItem] = Field(description="Outcomes in the order of the request.")


class ResultsRequest(Wire):
    """Tasks whose results are requested: the body of `POST /tasks/batch/results`."""

    tasks: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        description="Ids of tasks.", min_length=1, max_length=MOST_IN_BATCH
    )
    at_least: int = Field(1, description="Respond when at least this many of the tasks, or all of them, have finished.", ge=1, strict=True)
    wait: float = Field(0.0, description="Respond after this many seconds in any case.", ge=0, le=LONGEST_WAIT, allow_inf_nan=False)


class ResultPayload(Wire):
    """Opaque result of a task, as returned by `GET /tasks/{id}/payload`."""

    encoding: str = Field(description="`cloudpickle`; load it only if you trust the code of the task.")
    base64: str = Field(description="Bytes of the result in base64.")


class ResultItem(Wire):
    """Finished task."""

    task_id: str
    task: Task | None = _or_absent("Record of the task, without parameters.")
    payload: ResultPayload | None = _or_absent("Opaque result, if there is one of at most 64 KiB. Fetch larger results individually.")
    error: BatchProblem | None = _or_absent("Error of the lookup, if the task is unknown.")


class ResultsAnswer(Wire):
    """Finished tasks among the requested ones."""

    results: list[ResultItem] = Field(
        description="Finished tasks in the order of the request. A response is limited to about 4 MB; request the remaining tasks again."
    )
