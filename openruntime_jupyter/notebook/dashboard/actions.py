"""What a dashboard's buttons do where its page can't ask the server itself: the same by the kernel's own connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openruntime_jupyter.client.handles import again
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.notebook.dashboard.feed import row

Action = Callable[[Backend, dict[str, Any]], Any]


def _again(backend: Backend, said: dict[str, Any]) -> Any:
    return again(backend, said["id"], "notebook").model_dump(mode="json")


def _run(backend: Backend, said: dict[str, Any]) -> Any:
    return backend.submit({**said, "origin": "notebook"}, new_key()).model_dump(mode="json", exclude={"parameters"})


def _tasks(backend: Backend, said: dict[str, Any]) -> Any:
    page = backend.tasks(int(said["limit"]), states=said.get("states"), offset=int(said["offset"]), order=said["order"])
    return {"tasks": [row(task) for task in page.tasks]}


ACTIONS: dict[str, Action] = {
    "cancel": lambda backend, said: backend.cancel(said["id"]).model_dump(mode="json", exclude={"parameters"}),
    "priority": lambda backend, said: backend.reprioritise(said["id"], int(said["priority"])).model_dump(
        mode="json", exclude={"parameters"}
    ),
    "task": lambda backend, said: backend.get(said["id"], parameters=False).model_dump(mode="json"),
    "tasks": _tasks,
    "output": lambda backend, said: backend.output(said["id"], int(said.get("since", 0))).model_dump(mode="json"),
    "again": _again,
    "run": _run,
    "restart": lambda backend, said: backend.restart_session(said["id"]).model_dump(mode="json"),
    "free": lambda backend, said: backend.free_session(said["id"]).model_dump(mode="json"),
    "unload": lambda backend, said: {"unloaded": backend.prompts.unload(said["name"])},
    "insights": lambda backend, said: backend.insights(said["metric_type"], said["timeframe"]).model_dump(mode="json"),
}
"""By name, as the page calls them; each raises the backend's errors."""
