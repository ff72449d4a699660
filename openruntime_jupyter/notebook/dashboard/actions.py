"""Button actions for pages that cannot reach the server, run through the kernel's connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openruntime_jupyter.client.handles import again
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.notebook.dashboard.feed import row

Action = Callable[[Backend, dict[str, Any]], Any]


def _again(backend: Backend, args: dict[str, Any]) -> Any:
    return again(backend, args["id"], "notebook").model_dump(mode="json")


def _run(backend: Backend, args: dict[str, Any]) -> Any:
    return backend.submit({**args, "origin": "notebook"}, new_key()).model_dump(mode="json", exclude={"parameters"})


def _tasks(backend: Backend, args: dict[str, Any]) -> Any:
    page = backend.tasks(int(args["limit"]), states=args.get("states"), offset=int(args["offset"]), order=args["order"])
    return {"tasks": [row(task) for task in page.tasks]}


ACTIONS: dict[str, Action] = {
    "cancel": lambda backend, args: backend.cancel(args["id"]).model_dump(mode="json", exclude={"parameters"}),
    "priority": lambda backend, args: backend.reprioritise(args["id"], int(args["priority"])).model_dump(
        mode="json", exclude={"parameters"}
    ),
    "task": lambda backend, args: backend.get(args["id"], parameters=False).model_dump(mode="json"),
    "tasks": _tasks,
    "output": lambda backend, args: backend.output(args["id"], int(args.get("since", 0))).model_dump(mode="json"),
    "again": _again,
    "run": _run,
    "restart": lambda backend, args: backend.restart_session(args["id"]).model_dump(mode="json"),
    "free": lambda backend, args: backend.free_session(args["id"]).model_dump(mode="json"),
    "unload": lambda backend, args: {"unloaded": backend.prompts.unload(args["name"])},
    "insights": lambda backend, args: backend.insights(args["metric_type"], args["timeframe"]).model_dump(mode="json"),
}
"""Actions by name, as called by the page. Each raises the backend's errors."""
