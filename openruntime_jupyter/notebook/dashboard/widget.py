"""The dashboard as a widget: what it shows is gathered by `feed.py`; what is clicked is done by the page, or by the kernel for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import anywidget
import traitlets

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.discovery import connect
from openruntime_jupyter.errors import OpenRuntimeError
from openruntime_jupyter.notebook.dashboard.actions import ACTIONS
from openruntime_jupyter.notebook.dashboard.feed import Shown, feed_of
from openruntime_jupyter.notebook.display.tables import Status
from openruntime_jupyter.notebook.display.tasks import TaskTable
from openruntime_jupyter.schemas.system import TIMEFRAMES, Timeframe

STATIC = Path(__file__).parent / "static"


class Dashboard(anywidget.AnyWidget):
    """Devices, charts, tasks, sessions, models and operations of a runtime, live.

    `client` is the runtime's, by default the one that this kernel belongs to; `timeframe` is how far back the charts go: `5m`, `15m`,
    `1h`, `6h`, `24h` or `7d`. It is live from the moment that it is made until it is closed, or until the last view of it has left the
    page, and again when it is shown again; while cells run too. However many there are, one thread and one connection serve them.
    Raises `NotConnected` where no runtime answers.
    """

    _esm = STATIC / "dashboard.js"

    timeframe = traitlets.Enum(list(TIMEFRAMES), "5m", help="How far back the charts go.").tag(sync=True)
    where = traitlets.Unicode(help="The runtime, as people call it.").tag(sync=True)
    # Each part is a trait of its own, so that only what has changed is sent.
    connection = traitlets.Dict(help="Whether the runtime answers, and if not, why.").tag(sync=True)
    health = traitlets.Dict(help="Its health, and its figures of now.").tag(sync=True)
    devices: traitlets.List[dict[str, Any]] = traitlets.List(help="What MLX computes on.").tag(sync=True)
    tasks: traitlets.List[dict[str, Any]] = traitlets.List(help="The rows of the table of tasks.").tag(sync=True)
    counts = traitlets.Dict(help="How many tasks run, wait, and have ended.").tag(sync=True)
    sessions: traitlets.List[dict[str, Any]] = traitlets.List(help="The sessions, the last used first.").tag(sync=True)
    models: traitlets.List[dict[str, Any]] = traitlets.List(help="The models that are in memory.").tag(sync=True)
    operations: traitlets.List[dict[str, Any]] = traitlets.List(help="The kinds of work, with the schemas of their parameters.").tag(
        sync=True
    )
    chart = traitlets.Dict(help="The figures of the charts.").tag(sync=True)
    changes: traitlets.List[dict[str, Any]] = traitlets.List(help="What events said of single tasks.").tag(sync=True)
    closed = traitlets.Bool(help="Whether it shows no more.").tag(sync=True)

    def __init__(self, client: Client | None = None, timeframe: Timeframe = "5m", **traits: Any) -> None:
        super().__init__(timeframe=timeframe, **traits)
        self._client = client or connect()
        self._lock = threading.Lock()
        self._views: set[str] = set()
        self.where = self._client.where
        self._feed = feed_of(self._client.backend)
        self._shown: Shown | None = self._feed.open(timeframe, self._show)
        self.observe(self._chosen, "timeframe")
        self.on_msg(self._asked)

    def _show(self, parts: dict[str, Any]) -> None:
        """Give the page what has changed; called on the thread of the events."""
        with self._lock, self.hold_sync():
            if not self.closed:
                for name, part in parts.items():
                    setattr(self, name, part)

    def _chosen(self, change: dict[str, Any]) -> None:
        if self._shown is not None:
            self._feed.change(self._shown, cast("Timeframe", change["new"]))

    def _asked(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        """The page asks for something: it is done on another thread, so that the kernel goes on."""
        if message.get("name") == "view":
            self._viewed(**message["said"])
        else:
            threading.Thread(target=self._act, args=(message,), name="openruntime-action", daemon=True).start()

    def _viewed(self, view: str, shown: bool) -> None:
        """A view of it came into a page, or left it: what nobody sees costs nothing."""
        (self._views.add if shown else self._views.discard)(view)
        if not self._views:
            self._pause()
        elif self._shown is None and not self.closed:
            self._shown = self._feed.open(self.timeframe, self._show)

    def _pause(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            self._feed.close(shown)

    def _act(self, message: dict[str, Any]) -> None:
        number = message.get("number")
        try:
            answer = ACTIONS[message["name"]](self._client.backend, message["said"])
        except (OpenRuntimeError, KeyError, ValueError) as problem:
            self.send({"number": number, "error": str(problem), "details": getattr(problem, "details", [])})
        else:
            self.send({"number": number, "answer": answer})

    def close(self) -> None:
        """Show no more; tasks go on."""
        if not self.closed:
            self._pause()
            self.closed = True
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and beside it what can be shown without one: the runtime and its tasks as they were."""
        made = super()._repr_mimebundle_(**options)
        bundle, metadata = made if isinstance(made, tuple) else (made, {})
        return {**(bundle or {}), **self._still()}, metadata

    def _still(self) -> dict[str, str]:
        try:
            client = self._client
            devices = client.devices()
            tasks = TaskTable(client.tasks(limit=20), {device.id: device.name for device in devices})
            views = (Status(client.where, client.health(), devices), tasks)
        except OpenRuntimeError as problem:
            return {"text/plain": f"OpenRuntime: {problem}"}
        return {"text/html": "".join(str(view.html()) for view in views), "text/plain": "\n".join(view.text() for view in views)}

    def __repr__(self) -> str:
        return f"<Dashboard of {self._client.where}>"
