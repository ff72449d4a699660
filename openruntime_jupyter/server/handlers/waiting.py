"""What all routes have in common that submit tasks and wait for them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import Parameter

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

PREFER = Parameter(
    "Prefer",
    "`respond-async` makes the task asynchronous, `wait=N` too, and waits up to N seconds (at most 60) for its end.",
)
APPLIED = Parameter("Preference-Applied", "Which preference was followed.")
LOCATION = Parameter("Location", "The address of the task.")

Value = TypeVar("Value")


class WaitingMixin(Handler):
    """Waits for tasks as long as somebody wants them."""

    async def while_wanted(self, runtime: Runtime, task_id: str, work: Coroutine[Any, Any, Value]) -> Value:
        """The outcome of `work`, which waits for the task; that is cancelled if all clients that wait for it have gone."""
        waiters = self.app.waiters
        waiters[task_id] += 1

        def gone() -> None:
            if waiters[task_id] == 1:
                self.app.in_background(runtime.cancel(task_id))

        try:
            return await self.while_connected(work, gone)
        finally:
            waiters[task_id] -= 1
            if waiters[task_id] == 0:
                del waiters[task_id]
