"""Mixin for handlers that submit tasks and wait for them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import Parameter

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.runtime import Runtime

PREFER = Parameter(
    "Prefer",
    "`respond-async` makes the task asynchronous. `wait=N` also waits up to N seconds (at most 60) for the task to finish.",
)
APPLIED = Parameter("Preference-Applied", "The applied preference.")
LOCATION = Parameter("Location", "URL of the task.")

Value = TypeVar("Value")


class WaitingMixin(Handler):
    """Handler that cancels a task when all clients that wait for it have disconnected."""

    async def while_wanted(self, runtime: Runtime, task_id: str, work: Coroutine[Any, Any, Value]) -> Value:
        """Return the result of `work`, which waits for the task. Cancel the task when its last waiting client disconnects."""
        waiters = self.app.waiters
        waiters[task_id] += 1

        def on_disconnect() -> None:
            if waiters[task_id] == 1:
                self.app.in_background(runtime.cancel(task_id))

        try:
            return await self.while_connected(work, on_disconnect)
        finally:
            waiters[task_id] -= 1
            if waiters[task_id] == 0:
                del waiters[task_id]
