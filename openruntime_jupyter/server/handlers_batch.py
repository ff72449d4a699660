"""Many tasks in one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jupyter_server.auth.decorator import authorized
from pydantic_core import to_json
from tornado import web

from openruntime_jupyter.models import Task
from openruntime_jupyter.runtime.slowly import slowly
from openruntime_jupyter.server.answers import BatchAnswer, BatchItem, BatchProblem, BatchRequest, Detail
from openruntime_jupyter.server.base import Handler
from openruntime_jupyter.server.described import IDEMPOTENCY_KEY, KEY_IN_USE, described
from openruntime_jupyter.server.errors import problem_of
from openruntime_jupyter.server.requests import read_key

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.batch import Answer

EXAMPLES = {
    "Three sizes": {"tasks": [{"operation": "matrix_multiply", "parameters": {"size": size}} for size in (64, 128, 256)]},
}


class BatchHandler(Handler):
    """`/tasks/batch`."""

    @described("Tasks", {202: BatchAnswer}, body=BatchRequest, headers=(IDEMPOTENCY_KEY,), errors={409: KEY_IN_USE}, examples=EXAMPLES)
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Submit many tasks.

        Each is answered in its place, and a wrong one spoils none of the others. Those that are taken are on disk, in one piece,
        before the answer.
        """
        batch = self.body(BatchRequest)
        key = read_key(self.request.headers.get("Idempotency-Key"))
        runtime = await self.runtime()
        answers = await runtime.submit_many(batch.tasks, await self.caller(), key)
        # One after the other, with turns for others in between: of a few thousand, all at once would be felt.
        items = [to_json(_item(answer), inf_nan_mode="null") async for answer in slowly(answers)]
        self.send(b'{"tasks":[%b]}' % b",".join(items), 202)


def _item(answer: Answer) -> BatchItem:
    if isinstance(answer, Task):
        return BatchItem.model_construct(task=answer)
    problem = problem_of(answer)
    retry_after = problem.headers.get("Retry-After")
    return BatchItem.model_construct(
        error=BatchProblem(
            code=problem.status,
            message=problem.message,
            details=[Detail.model_validate(detail) for detail in problem.details] if problem.details else None,
            retry_after=int(retry_after) if retry_after else None,
        )
    )
