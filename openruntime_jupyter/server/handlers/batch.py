"""Handlers that submit many tasks in one request and collect their results."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from pydantic_core import to_json

from openruntime_jupyter.runtime.tasks.batch import cooperatively
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.batch import (
    BatchItem,
    BatchProblem,
    BatchRequest,
    ResultItem,
    ResultPayload,
    ResultsRequest,
)
from openruntime_jupyter.schemas.problems import Detail
from openruntime_jupyter.schemas.tasks import Ended, Task
from openruntime_jupyter.server.http.base import Handler, serves
from openruntime_jupyter.server.http.errors import problem_of
from openruntime_jupyter.server.http.requests import read_key

if TYPE_CHECKING:
    from openruntime_jupyter.errors import OpenRuntimeError
    from openruntime_jupyter.runtime.tasks.batch import Answer

MOST_BYTES = 4_000_000
"""Size in bytes after which a response with results ends, or has no more details of invalid tasks."""
LONGEST_PROBLEM = 500
"""Maximum length in characters of a message without details."""


class BatchHandler(Handler):
    """Handler of `/tasks/batch`."""

    @serves(api.SUBMIT_BATCH)
    async def post(self) -> None:
        """Submit many tasks.

        The response has an outcome for each task, in order. Invalid tasks do not affect the others. Accepted tasks are written to
        disk in one transaction before the response.
        """
        batch = await self.body(BatchRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        runtime = await self.runtime()
        answers = await runtime.batches.submit(batch.tasks, await self.caller(), key, durable=batch.durable, large=self.is_large)
        # Yields to the event loop in between, because encoding thousands of tasks at once would block it noticeably.
        items: list[bytes] = []
        size = 0
        async for answer in cooperatively(answers):
            items.append(to_json(_item(answer, brief=size > MOST_BYTES), inf_nan_mode="null"))
            size += len(items[-1]) if not isinstance(answer, Task) else 0
        self.send(b'{"tasks":[%b]}' % b",".join(items), 202)


class ResultsHandler(Handler):
    """Handler of `/tasks/batch/results`."""

    @serves(api.COLLECT_RESULTS)
    async def post(self) -> None:
        """Collect the results of many tasks.

        Returns the finished tasks when at least `at_least` of them have finished or after `wait` seconds. The request changes nothing.
        It is a POST because a URL is too short for thousands of ids.
        """
        request = await self.body(ResultsRequest)
        runtime = await self.runtime()
        ended = await self.while_connected(runtime.results.collect(request.tasks, request.at_least, request.wait))
        items: list[bytes] = []
        size = 0
        async for each in cooperatively(ended):
            items.append(to_json(_result(each), inf_nan_mode="null"))
            size += len(items[-1])
            if size >= MOST_BYTES:
                break
        self.send(b'{"results":[%b]}' % b",".join(items))

    def update_api_activity(self) -> None:
        """Do nothing: a client that waits for results must not keep the server from being culled."""


def _result(ended: Ended) -> ResultItem:
    if not isinstance(ended.task, Task):
        return ResultItem.model_construct(task_id=ended.task_id, error=_problem(ended.task))
    payload = None
    if ended.payload is not None:
        data, encoding = ended.payload
        payload = ResultPayload.model_construct(encoding=encoding, base64=b64encode(data).decode())
    return ResultItem.model_construct(task_id=ended.task_id, task=ended.task, payload=payload)


def _item(answer: Answer, *, brief: bool) -> BatchItem:
    if isinstance(answer, Task):
        return BatchItem.model_construct(task=answer)
    problem = _problem(answer)
    if brief:
        problem = problem.model_copy(update={"message": problem.message[:LONGEST_PROBLEM], "details": None})
    return BatchItem.model_construct(error=problem)


def _problem(error: OpenRuntimeError) -> BatchProblem:
    problem = problem_of(error)
    retry_after = problem.headers.get(api.RETRY_AFTER)
    return BatchProblem(
        code=problem.status,
        error_code=problem.code,
        message=problem.message,
        details=[Detail.model_validate(detail) for detail in problem.details] if problem.details else None,
        retry_after=int(retry_after) if retry_after else None,
    )
