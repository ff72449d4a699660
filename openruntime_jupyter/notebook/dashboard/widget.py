"""The dashboard widget. `feed.py` collects its data; the page runs actions itself or through the kernel."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import anywidget
import traitlets
from pydantic import BaseModel

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.discovery import connect
from openruntime_jupyter.client.handles import again
from openruntime_jupyter.client.notebook_file import notebook
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.notebook.dashboard.feed import Subscription, feed_of, row
from openruntime_jupyter.notebook.display.format import device_name
from openruntime_jupyter.notebook.display.tables import Status
from openruntime_jupyter.notebook.display.tasks import TaskTable
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.insights import Insights
from openruntime_jupyter.schemas.system import TIMEFRAMES, Timeframe
from openruntime_jupyter.schemas.tasks import DASHBOARD, Task

STATIC = Path(__file__).parent / "static"
SILENT_SECONDS = 90.0
"""Time without a report after which a page is considered closed. It reports every 20 s, a hidden one at least every minute."""
GRACE_SECONDS = 5.0
"""Time for reports that wait until the kernel is idle."""


class Dashboard(anywidget.AnyWidget):
    """Live view of a runtime's devices, charts, tasks, sessions, models and operations.

    The dashboard is updated from its creation until it is closed or its last view is removed, also while cells run. Displaying it again
    resumes updates. All dashboards share one thread and one connection.

    Parameters
    ----------
    client
        Client of the runtime (default: the kernel's runtime).
    timeframe
        Time range of the charts: `5m`, `15m`, `1h`, `6h`, `24h` or `7d`.

    Raises
    ------
    NotConnected
        No runtime responds.
    """

    _esm = STATIC / "dashboard.js"

    timeframe = traitlets.Enum(list(TIMEFRAMES), "5m", help="Time range of the charts.").tag(sync=True)
    where = traitlets.Unicode(help="Address of the runtime, for display.").tag(sync=True)
    notebook = traitlets.Unicode(None, allow_none=True, help="Notebook of this dashboard, if known.").tag(sync=True)
    # Each part is a separate trait, so that only changed parts are sent.
    connection = traitlets.Dict(help="Connection state: `live`, and the `reason` if the runtime does not respond.").tag(sync=True)
    health = traitlets.Dict(help="Health and current metrics.").tag(sync=True)
    devices: traitlets.List[dict[str, Any]] = traitlets.List(help="MLX devices.").tag(sync=True)
    hosts: traitlets.List[dict[str, Any]] = traitlets.List(help="Other machines that run tasks.").tag(sync=True)
    tasks: traitlets.List[dict[str, Any]] = traitlets.List(help="Rows of the task table.").tag(sync=True)
    counts = traitlets.Dict(help="Number of running, waiting and ended tasks.").tag(sync=True)
    sessions: traitlets.List[dict[str, Any]] = traitlets.List(help="Sessions, most recently used first.").tag(sync=True)
    models: traitlets.List[dict[str, Any]] = traitlets.List(help="Loaded models.").tag(sync=True)
    operations: traitlets.List[dict[str, Any]] = traitlets.List(help="Operations with the schemas of their parameters.").tag(sync=True)
    chart = traitlets.Dict(help="Data of the charts.").tag(sync=True)
    changes: traitlets.List[dict[str, Any]] = traitlets.List(help="Changes of single tasks.").tag(sync=True)
    closed = traitlets.Bool(help="True after `close`.").tag(sync=True)

    def __init__(self, client: Client | None = None, timeframe: Timeframe = "5m", **traits: Any) -> None:
        super().__init__(timeframe=timeframe, **traits)
        self._client = client or connect()
        self._lock = threading.Lock()
        self._views: dict[str, float] = {}
        """Times of the last reports of the views that show this dashboard."""
        self._checking = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # not in a kernel
            self._loop = None
        self.where = self._client.where
        self.notebook = notebook()
        self._feed = feed_of(self._client.backend)
        self._subscription: Subscription | None = self._feed.open(timeframe, self._show, self._check_views)
        self.observe(self._on_timeframe, "timeframe")
        self.on_msg(self._on_message)

    def _show(self, parts: dict[str, Any]) -> None:
        """Send changed parts to the page. Called on the event thread."""
        with self._lock, self.hold_sync():
            if not self.closed:
                for name, part in parts.items():
                    setattr(self, name, part)

    def _on_timeframe(self, change: dict[str, Any]) -> None:
        if self._subscription is not None:
            self._feed.change(self._subscription, cast("Timeframe", change["new"]))

    def _on_message(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        """Handle a message from the page. Actions run on another thread, so that they do not block the kernel."""
        if message.get("name") == "view":
            self._on_view(**message["args"])
        else:
            threading.Thread(target=self._act, args=(message,), name="openruntime-action", daemon=True).start()

    def _on_view(self, view: str, shown: bool) -> None:
        """Track a view that is shown or was removed. Without any view, updates are paused."""
        if shown:
            self._views[view] = time.monotonic()
        else:
            self._views.pop(view, None)
        if not self._views:
            self._pause()
        elif self._subscription is None and not self.closed:
            self._subscription = self._feed.open(self.timeframe, self._show, self._check_views)

    def _silent(self) -> bool:
        """Return whether no page has reported for long."""
        return time.monotonic() - max(list(self._views.values()), default=math.inf) > SILENT_SECONDS

    def _check_views(self) -> None:
        """Look for pages that were closed without a report. Called regularly on the event thread.

        A kernel that runs a cell reads no reports, so the check waits until its event loop is free.
        """
        if self._loop is not None and not self._checking and self._silent():
            self._checking = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._loop.call_later, GRACE_SECONDS, self._pause_if_silent)

    def _pause_if_silent(self) -> None:
        self._checking = False
        if self._silent():
            self._views.clear()
            self._pause()

    def _pause(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._feed.close(subscription)

    def _act(self, message: dict[str, Any]) -> None:
        number = message.get("number")
        try:
            answer = ACTIONS[message["name"]](self._client.backend, message["args"])
        except (OpenRuntimeError, KeyError, ValueError) as problem:
            self.send({"number": number, "error": str(problem), "details": getattr(problem, "details", [])})
        else:
            sent = answer.model_dump(mode="json", exclude={"parameters"}) if isinstance(answer, BaseModel) else answer
            self.send({"number": number, "answer": sent})

    def close(self) -> None:
        """Stop the updates permanently. Tasks continue."""
        if not self.closed:
            self._pause()
            self.closed = True
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the widget with the forms for saved notebooks: the id of the runtime, and its current status and tasks."""
        made = super()._repr_mimebundle_(**options)
        bundle, metadata = made if isinstance(made, tuple) else (made, {})
        return {**(bundle or {}), **self._fallback()}, metadata

    def _fallback(self) -> dict[str, Any]:
        try:
            client = self._client
            devices = client.devices()
            health = client.health()
            tasks = TaskTable(client.tasks(limit=20), {device.id: device_name(device) for device in devices})
        except OpenRuntimeError as problem:
            return {"text/plain": f"OpenRuntime: {problem}"}
        views = (Status(client.where, health, devices), tasks)
        text = {"text/html": "".join(str(view.html()) for view in views), "text/plain": "\n".join(view.text() for view in views)}
        return {DASHBOARD: {"runtime": health.runtime}, **text}

    def __repr__(self) -> str:
        return f"<Dashboard of {self._client.where}>"


Action = Callable[[Backend, dict[str, Any]], BaseModel | dict[str, Any]]


def _run(backend: Backend, args: dict[str, Any]) -> Task:
    return backend.call(api.SUBMIT_TASK, body={**args, "origin": "notebook", "notebook": notebook()}, key=new_key())


def _tasks(backend: Backend, args: dict[str, Any]) -> dict[str, Any]:
    query = {"limit": int(args["limit"]), "state": args.get("states"), "offset": int(args["offset"]), "order": args["order"]}
    page = backend.call(api.LIST_TASKS, query={**query, "search": args.get("search"), "notebook": args.get("notebook")})
    return {"tasks": [row(task) for task in page.tasks], "total_count": page.total_count}


def _task(backend: Backend, args: dict[str, Any]) -> dict[str, Any]:
    """Return a task with the summary of its parameters."""
    return backend.call(api.GET_TASK, args["id"], query={"summary": True}).model_dump(mode="json")


def _insights(backend: Backend, args: dict[str, Any]) -> Insights:
    request = {"metric_type": args["metric_type"], "timeframe": args["timeframe"], "wording": "none"}
    return backend.call(api.ANALYSE_HISTORY, body=request)


ACTIONS: dict[str, Action] = {
    "cancel": lambda backend, args: backend.call(api.CANCEL_TASK, args["id"]),
    "delete": lambda backend, args: backend.call(api.CANCEL_TASK, args["id"], query={"purge": True}),
    "priority": lambda backend, args: backend.call(api.CHANGE_TASK, args["id"], body={"priority": int(args["priority"])}),
    "task": _task,
    "tasks": _tasks,
    "output": lambda backend, args: backend.call(api.GET_OUTPUT, args["id"], query={"since": int(args.get("since", 0))}),
    "again": lambda backend, args: again(backend, args["id"], "notebook"),
    "run": _run,
    "restart": lambda backend, args: backend.call(api.RESTART_SESSION, args["id"]),
    "free": lambda backend, args: backend.call(api.FREE_SESSION, args["id"]),
    "unload": lambda backend, args: {"unloaded": backend.call(api.UNLOAD_MODEL, args["name"])},
    "insights": _insights,
}
"""Actions by name, as called by the page. Each raises the backend's errors. Records are sent without a task's parameters, except
by `task`."""
