"""An AI task, as whoever asked or found it again holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.client.handles import TaskHandle, task_error
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.models import Task, TaskState

PROMPT = "ai_task_"
"""How the ids of AI tasks begin."""


class PromptHandle(TaskHandle):
    """One AI task of one runtime: a `TaskHandle` whose text can be read while it is written, `for piece in handle`.

    `left_out` is how many of its conversation's oldest turns the model had no room for; None where this handle did not ask.
    """

    def __init__(self, backend: Backend, task: Task, left_out: int | None = None) -> None:
        super().__init__(backend, task)
        self.left_out = left_out

    def result(self, timeout: float | None = None) -> Reply:
        """The whole answer, once it is there; raises what `TaskHandle.result` raises."""
        return Reply.of(self.id, super().result(timeout))

    def pieces(self, since: int = 0) -> Iterator[tuple[int, str]]:
        """The text after `since` characters as it is written: (characters before it, piece), until the task ends, however it ends.

        A piece whose first number is 0 again begins anew: the worker died, and the task runs again. Closing it cancels nothing.
        """
        return self._backend.prompts.tokens(self.id, since)

    def __iter__(self) -> Iterator[str]:
        """The text piece by piece as it is written; at the end raises what `result` raises. Leaving the loop cancels nothing."""
        for _, piece in self.pieces():
            yield piece
        task = self.wait()
        if task.status is not TaskState.COMPLETED:
            raise task_error(task)


def handle_of(backend: Backend, task: Task) -> TaskHandle:
    """The kind of handle that is right for a task."""
    return (PromptHandle if task.task_id.startswith(PROMPT) else TaskHandle)(backend, task)


def prompt_request(prompt: str, workflow: str, parameters: dict[str, Any], options: dict[str, Any], origin: str) -> dict[str, Any]:
    """An `AiRequest` as JSON: what is None is not sent. Raises `InvalidRequest` for an option that prompts don't have."""
    if "memory_limit" in options:
        raise InvalidRequest.of("memory_limit", "is for tasks that run code: a model's memory is known before it is loaded")
    given = {name: value for name, value in parameters.items() if value is not None}
    return {"workflow_type": workflow, "prompt": prompt, "parameters": given, "origin": origin, **options}
