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
from openruntime_jupyter.models import TIMEFRAMES, Timeframe
from openruntime_jupyter.notebook.dashboard.actions import ACTIONS
from openruntime_jupyter.notebook.dashboard.feed import Shown, feed_of
from openruntime_jupyter.notebook.inventory import Status
from openruntime_jupyter.notebook.views import TaskTable

STATIC = Path(__file__).parent / "static"


class Dashboard(anywidget.AnyWidget):
    """Devices, charts, tasks, models and operations of a runtime, live.

    `client` is the runtime's, by default the one that this kernel belongs to; `timeframe` is how far back the charts go: `5m`, `15m`,
    `1h`, `6h`, `24h` or `7d`. It is live from the moment that it is made until it is closed, while cells run too. However many there
    are, one thread and one connection serve them. Raises `NotConnected` where no runtime answers.
    """

    _esm = STATIC / "dashboard.js"

    timeframe = traitlets.Enum(list(TIMEFRAMES), "5m", help="How far back the charts go.").tag(sync=True)
    state = traitlets.Dict(help="What is shown, by part.").tag(sync=True)
    chart = traitlets.Dict(help="The figures of the charts.").tag(sync=True)
    change = traitlets.Dict(help="What an event said of one task.").tag(sync=True)

    def __init__(self, client: Client | None = None, timeframe: Timeframe = "5m", **traits: Any) -> None:
        super().__init__(timeframe=timeframe, **traits)
        self._client = client or connect()
        self._lock = threading.Lock()
        self.state = {"where": self._client.where}
        self._feed = feed_of(self._client.backend)
        self._open = True
        self._shown: Shown = self._feed.open(timeframe, self._show)
        self.observe(self._chosen, "timeframe")
        self.on_msg(self._asked)

    def _show(self, parts: dict[str, Any]) -> None:
        """Give the page what has changed; called on the thread of the events."""
        with self._lock, self.hold_sync():
            if not self._open:
                return
            if "change" in parts:
                self.change = parts.pop("change")
            if "chart" in parts:
                self.chart = parts.pop("chart")
            if parts:
                self.state = {**self.state, **parts}

    def _chosen(self, change: dict[str, Any]) -> None:
        self._feed.change(self._shown, cast("Timeframe", change["new"]))

    def _asked(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        """The page asks for something: it is done on another thread, so that the kernel goes on."""
        threading.Thread(target=self._act, args=(message,), name="openruntime-action", daemon=True).start()

    def _act(self, message: dict[str, Any]) -> None:
        number = message.get("number")
        try:
            answer = ACTIONS[message["name"]](self._client.backend, message["said"])
        except (OpenRuntimeError, KeyError, ValueError) as problem:
            self.send({"number": number, "error": str(problem)})
        else:
            self.send({"number": number, "answer": answer})

    def close(self) -> None:
        """Show no more; tasks go on."""
        if self._open:
            self._open = False
            self._feed.close(self._shown)
            self.state = {**self.state, "closed": True}
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and beside it what can be shown without one: the runtime and its tasks as they were."""
        made = super()._repr_mimebundle_(**options)
        bundle, metadata = made if isinstance(made, tuple) else (made, {})
        return {**(bundle or {}), **self._still()}, metadata

    def _still(self) -> dict[str, str]:
        try:
            client = self._client
            views = (Status(client.where, client.health(), client.devices()), TaskTable(client.tasks(limit=20), {}))
        except OpenRuntimeError as problem:
            return {"text/plain": f"OpenRuntime: {problem}"}
        return {"text/html": "".join(str(view.html()) for view in views), "text/plain": "\n".join(view.text() for view in views)}

    def __repr__(self) -> str:
        return f"<Dashboard of {self._client.where}>"
