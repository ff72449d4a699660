"""Batches of tasks on the wire."""

from __future__ import annotations

from base64 import b64decode
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.schemas.base import Wire, absent
from openruntime_jupyter.schemas.problems import CODES, Detail, error_of
from openruntime_jupyter.schemas.queries import LONGEST_WAIT
from openruntime_jupyter.schemas.tasks import Ended, Task

MOST_IN_BATCH = 5_000
"""Maximum number of tasks in one batch; the steps that cannot be split would take noticeably long for more."""


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
    error_code: str = Field(description="Code of the error, as `data.code` of an error response.", json_schema_extra={"enum": [*CODES]})
    message: str = Field(description="Error message with a suggested fix.")
    details: list[Detail] | None = Field(None, description="Problems with individual fields, if any.")
    retry_after: int | None = Field(None, description="Seconds to wait before a retry, if a retry can succeed.")


class BatchItem(Wire):
    """Outcome of one task of a batch: either a task or an error."""

    task: Task | None = absent("Record of the task, without parameters.")
    error: BatchProblem | None = absent("Reason why the task was rejected.")


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

    task_id: str = Field(description="Id of the task.")
    task: Task | None = absent("Record of the task, without parameters.")
    payload: ResultPayload | None = absent("Opaque result, if there is one of at most 64 KiB. Fetch larger results individually.")
    error: BatchProblem | None = absent("Error of the lookup, if the task is unknown.")


class ResultsAnswer(Wire):
    """Finished tasks among the requested ones."""

    results: list[ResultItem] = Field(
        description="Finished tasks in the order of the request. A response is limited to about 4 MB; request the remaining tasks again."
    )


def outcomes(answer: BatchAnswer) -> list[Task | OpenRuntimeError]:
    """Return the task or the error of each item of a response."""
    return [_outcome(item) for item in answer.tasks]


def ended_tasks(answer: ResultsAnswer) -> list[Ended]:
    """Return the finished tasks of a response with their payloads."""
    return [Ended(item.task_id, _outcome(item), _payload(item.payload)) for item in answer.results]


def _outcome(item: BatchItem | ResultItem) -> Task | OpenRuntimeError:
    if item.task is not None:
        return item.task
    if item.error is None:
        raise ValueError("an item has neither a task nor an error")
    problem = item.error
    details = [detail.model_dump() for detail in problem.details or []]
    return error_of(problem.code, problem.error_code, problem.message, details, problem.retry_after)


def _payload(payload: ResultPayload | None) -> tuple[bytes, str] | None:
    return None if payload is None else (b64decode(payload.base64), payload.encoding)
