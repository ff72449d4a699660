"""The same work once more, as a new task."""

from __future__ import annotations

from typing import Any

from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.models import Origin, Task

KEPT = ("operation", "parameters", "device_preference", "priority", "timeout", "retries", "name", "memory_limit", "session")
"""What a task has from whoever submitted it."""


def again(backend: Backend, task_id: str, origin: Origin, changes: dict[str, Any] | None = None) -> Task:
    """Submit what the task `task_id` was submitted as, but for the `changes` (fields of a `TaskRequest`); returns the new task.

    Raises what submitting raises: `InvalidRequest`, for one, where arrays that it worked on are gone by now.
    """
    before = backend.get(task_id)
    request = {"parameters": {}, **{name: value for name in KEPT if (value := getattr(before, name)) is not None}}
    try:
        return backend.submit({**request, **(changes or {}), "origin": origin}, new_key())
    except InvalidRequest as problem:
        if not request["parameters"].get("arrays"):
            raise
        gone = "large arrays are let go of at a task's end, so it can't be done once more: run its cell, or make its call, again"
        raise InvalidRequest.of("arrays", f"{gone} ({problem})") from problem
