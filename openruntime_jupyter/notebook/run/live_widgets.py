"""Widgets of a task, shown live as widgets of this kernel while its cell follows the task.

The display of such a widget carries the state of its models. The kernel opens comms with that state, so that the page makes models of its
own, and updates them. Messages of the page do not reach the task. When the task ends, the page shows the static form again, except for
widgets that have none. Notebook files have the static form at all times: the server takes widgets of tasks out of the notebooks that it
saves (`server/saved_widgets.py`). Kernels of other servers, and programs such as nbclient, show the static form, which is updated too.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comm
from comm.base_comm import BaseComm
from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from openruntime_jupyter.client.interruption import in_kernel, kernel_stops
from openruntime_jupyter.schemas.tasks import LIVE_WIDGET, MARK, WIDGET, OutputItem

TARGET = "jupyter.widget"
VERSION = {"version": "2.1.0"}
"""Version of the protocol of ipywidgets 8, which pages of ipywidgets 7 understand as well."""
REFRESH_SECONDS = 2.0
FOREIGN_REFRESH_SECONDS = 30.0
"""Minimum intervals between updates of the static form behind a live widget, which the page saves. Each makes a new view of the widget,
which is expensive for maps and charts of other packages."""


def pages_show_widgets() -> bool:
    """Return whether the pages of this kernel show widgets, and their server keeps widgets of tasks out of saved notebooks.

    VS Code saves notebooks itself.
    """
    by_server = os.environ.get("OPENRUNTIME_LIVE_WIDGETS") and os.environ.get("OPENRUNTIME_SERVER_PID") == os.environ.get("JPY_PARENT_PID")
    shell: Any = get_ipython()
    return bool(by_server) and in_kernel() and "__vsc_ipynb_file__" not in shell.user_ns


@dataclass
class _Shown:
    """A displayed widget with its models, and its static form."""

    widget: dict[str, Any]
    static: dict[str, Any]
    published: dict[str, Any] = field(default_factory=dict)
    """Static form that the page has, since `published_at`."""
    published_at: float = float("-inf")

    @property
    def due(self) -> bool:
        """True if the page should get the static form."""
        interval = FOREIGN_REFRESH_SECONDS if self.widget["foreign"] else REFRESH_SECONDS
        return self.static != self.published and time.monotonic() - self.published_at > interval

    def publish(self, display_id: str, update: bool) -> None:
        """Display the widget with its static form."""
        self.published, self.published_at = self.static, time.monotonic()
        view = {"model_id": self.widget["model"], "version_major": 2, "version_minor": 0}
        _publish({**self.static, WIDGET: view}, MARK, display_id, update)


def _publish(data: dict[str, Any], metadata: dict[str, Any] | None, display_id: str, update: bool) -> None:
    publish_display_data(data, metadata or {}, transient={"display_id": display_id} if display_id else {}, update=update)


class LiveWidgets:
    """The displayed widgets of one task, and the comms of their models."""

    def __init__(self) -> None:
        self._possible = pages_show_widgets()
        self._comms: dict[str, BaseComm] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, _Shown] = {}

    def publish(self, item: OutputItem) -> None:
        """Display an item of the task's output, or update its displays."""
        data, display_id, update = dict(item.data or {}), item.display_id or "", item.output_type == "update_display_data"
        live = data.pop(LIVE_WIDGET, None)
        if live is None or not self._possible or not display_id:
            self._shown.pop(display_id, None)
            _publish(data, item.metadata, display_id, update)
            return
        widget = json.loads(live)
        self._send(widget["models"])
        if not update or display_id not in self._shown:
            self._shown[display_id] = _Shown(widget, data)
        shown = self._shown[display_id]
        shown.widget, shown.static = widget, data
        if shown.due:
            shown.publish(display_id, update)

    def clear(self) -> None:
        """Forget the displays, which were deleted."""
        self._shown.clear()

    def release(self) -> None:
        """Close the models that no display shows any more."""
        used = {model for shown in self._shown.values() for model in shown.widget["models"]}
        for model in [*self._comms]:
            if model not in used:
                self._comms.pop(model).close()
                del self._sent[model]

    def end(self) -> None:
        """Show the static forms. Widgets of other packages than ipywidgets have none, and stay as they are."""
        for display_id, shown in [*self._shown.items()]:
            if shown.widget["foreign"]:
                if shown.static != shown.published:
                    shown.publish(display_id, update=True)
            else:
                del self._shown[display_id]
                _publish(shown.static, None, display_id, update=True)
        if not kernel_stops():  # the page of a kernel that restarts does not know its comms any more
            self.release()

    def _send(self, models: dict[str, dict[str, Any]]) -> None:
        """Open the comms of new models, in order, and send what has changed of known ones."""
        for model, encoded in models.items():
            before = self._sent.get(model)
            if encoded == before:
                continue
            self._sent[model] = encoded
            state, paths, buffers = encoded["state"], encoded["paths"], _buffers(encoded)
            if before is not None:
                binary = {path[0] for path in paths}
                changed = {name: value for name, value in state.items() if name in binary or value != before["state"].get(name)}
                self._comms[model].send({"method": "update", "state": changed, "buffer_paths": paths}, buffers=buffers)
                continue
            content = {"state": state, "buffer_paths": paths}
            opened = comm.create_comm(target_name=TARGET, comm_id=model, data=content, metadata=VERSION, buffers=buffers)
            opened.on_msg(partial(_reply, opened, self._sent))
            self._comms[model] = opened


def _buffers(encoded: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(each) for each in encoded["buffers"]]


def _reply(opened: BaseComm, sent: dict[str, dict[str, Any]], message: dict[str, Any]) -> None:
    """Send the state of a model to a page that was reloaded. The page waits for the states of all models of the kernel."""
    encoded = sent.get(opened.comm_id)
    if encoded is not None and message["content"]["data"].get("method") == "request_state":
        content = {"method": "update", "state": encoded["state"], "buffer_paths": encoded["paths"]}
        opened.send(content, buffers=_buffers(encoded))
