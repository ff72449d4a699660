"""Widgets of a task, displayed as HTML and text that follow the widgets' state.

A page cannot reach the comms of a worker, whose widget models end with it. So each display of a widget is replaced by a static form, which
is updated while the state changes. Saved notebooks and the history have its last state.
"""

from __future__ import annotations

import base64
import re
import threading
import uuid
from collections.abc import Callable
from html import escape, unescape
from typing import Any

import comm
from comm.base_comm import BaseComm

WIDGET = "application/vnd.jupyter.widget-view+json"
REFERENCE = "IPY_MODEL_"
"""Prefix of a model's id in the state of another model."""
UPDATE_SECONDS = 0.1
"""Minimum interval between updates of the displays."""
BAR_CHARACTERS = 20
LONGEST_VALUE = 1000
"""Maximum characters of a control's value."""
PASSIVE = ("Box", "HTML", "Label", "Progress", "Image", "Output", "Tab", "Accordion", "Stack", "Valid")
"""Parts of the names of models without controls."""
NO_CONTROLS = "The controls do not work: the widget belongs to a worker, which ends with the task"

Send = Callable[[dict[str, Any], str], None]
Form = tuple[str, str]
"""Text and HTML."""


class TaskComm(BaseComm):
    """Comm whose messages update the state in `TaskWidgets`."""

    class kernel:  # noqa: N801 - the name is ipywidgets'
        """Part of a kernel that `ipywidgets.Output` needs to announce which output it captures."""

        @staticmethod
        def get_parent() -> dict[str, Any]:
            """Return a request with an id."""
            return {"header": {"msg_id": "task"}}

    def __init__(self, widgets: TaskWidgets, **given: Any) -> None:
        self._widgets = widgets
        super().__init__(**given)

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any) -> None:
        """Pass a message to `TaskWidgets`."""
        self._widgets.receive(self.comm_id, msg_type, data or {}, buffers or [])


class TaskWidgets:
    """State of the widget models of this process, and the displays that show them.

    Parameters
    ----------
    update : called as `update(data, display_id)` to replace the data of a display, on any thread
    capture : called with the id of the output widget that captures the output from now on, or None
    """

    def __init__(self, update: Send, capture: Callable[[str | None], None]) -> None:
        self._update = update
        self._capture = capture
        self._states: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, tuple[str, dict[str, Any]]] = {}  # model and last data by display id
        self._capturing: list[str] = []
        self._timer: threading.Timer | None = None
        self.lock = threading.RLock()
        """Held while a widget is displayed, so that its updates follow its display."""

    @property
    def capturing(self) -> bool:
        """True inside the context of an output widget."""
        return bool(self._capturing)

    def install(self) -> None:
        """Create the comms of this process."""
        comm.create_comm = lambda **given: TaskComm(self, **given)

    def receive(self, model: str, kind: str, data: dict[str, Any], buffers: list[bytes]) -> None:
        """Apply a comm message of a model, and update the displays soon."""
        with self.lock:
            if kind == "comm_close":
                self._states.pop(model, None)
            elif "state" in data:
                changes = _with_buffers(data["state"], data.get("buffer_paths") or [], buffers)
                self._states.setdefault(model, {}).update(changes)
                if "msg_id" in changes and "Output" in self._name(model):
                    self._captures(model, bool(changes["msg_id"]))
            if self._shown and self._timer is None:
                self._timer = threading.Timer(UPDATE_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def _captures(self, model: str, begins: bool) -> None:
        if begins:
            self._capturing.append(model)
        elif model in self._capturing:
            self._capturing.remove(model)
        else:
            return
        self._capture(self._capturing[-1] if self._capturing else None)

    def replace(self, data: dict[str, Any], display_id: str | None) -> tuple[dict[str, Any], str | None]:
        """Replace a widget in a MIME bundle by its static form. Return the bundle and its display id."""
        if WIDGET not in data:
            return data, display_id
        with self.lock:
            model = data[WIDGET]["model_id"]
            display_id = display_id or uuid.uuid4().hex
            rest = {kind: value for kind, value in data.items() if kind != WIDGET}
            if model not in self._states or "text/html" in rest:  # some widgets have their own static form
                return rest, display_id
            form = self._form(model)
            self._shown[display_id] = (model, form)
            return {**rest, **form}, display_id

    def flush(self) -> None:
        """Update the displays whose widgets have changed."""
        with self.lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for display_id, (model, before) in list(self._shown.items()):
                form = self._form(model)
                if form != before:
                    self._shown[display_id] = (model, form)
                    self._update(form, display_id)
                if model not in self._states:
                    del self._shown[display_id]

    def end_task(self) -> None:
        """Show the last state of the widgets. No output widget captures the output of a later task."""
        self.flush()
        self._capturing.clear()

    def _form(self, model: str) -> dict[str, Any]:
        """Return the static form of a displayed model; empty once the widget is closed."""
        models: set[str] = set()
        try:
            text, html = self._render(model, models)
        except (TypeError, ValueError, IndexError):  # the state of a foreign widget with a familiar name
            text = html = escape(self._name(model))
        if not all(any(part in self._name(each) for part in PASSIVE) for each in models if each in self._states):
            text += f"\n({NO_CONTROLS})"
            html += f"<div><small>{NO_CONTROLS}</small></div>"
        return {"text/plain": text, "text/html": f"<div>{html}</div>" if html else ""}

    def _name(self, model: str) -> str:
        return str(self._states.get(model, {}).get("_model_name", "")).removesuffix("Model")

    def _render(self, model: str, seen: set[str]) -> Form:
        state, name = self._states.get(model), self._name(model)
        if state is None or model in seen:
            return "", ""
        seen.add(model)
        if isinstance(state.get("children"), (list, tuple)):
            return self._render_children(state["children"], name == "HBox", seen)
        label = str(state.get("description") or "")
        if "Progress" in name:
            text, html = _bar(state)
        elif "HTML" in name or name == "Label":
            html = str(state.get("value", ""))
            text = _stripped(html) if "HTML" in name else html
            html = html if "HTML" in name else escape(html)
        elif name == "Image" and isinstance(state.get("value"), (bytes, bytearray, memoryview)):
            encoded = base64.b64encode(bytes(state["value"])).decode()
            text, html = "[image]", f'<img src="data:image/{escape(str(state.get("format", "png")))};base64,{encoded}" alt="">'
        elif name == "Output":
            text = "".join(str(output.get("text", "")) for output in state.get("outputs") or ())
            html = f"<pre>{escape(text)}</pre>" if text else ""
        elif "Button" in name and "value" not in state and "index" not in state:
            text, label = f"[{label}]", ""
            html = escape(text)
        else:
            text = name if (value := _value(state)) is None else "•••" if name == "Password" and value else value
            html = escape(text)
        return (f"{label}: {text}", f"{escape(label)}: {html}") if label else (text, html)

    def _render_children(self, children: Any, row: bool, seen: set[str]) -> Form:
        forms = [self._render(str(child).removeprefix(REFERENCE), seen) for child in children]
        texts, parts = [text for text, _ in forms if text], [html for _, html in forms if html]
        if row:
            cells = "".join(f"<span>{part}</span>" for part in parts)
            return " ".join(texts), f'<div style="display:flex;gap:4px;align-items:center">{cells}</div>' if cells else ""
        return "\n".join(texts), "".join(f"<div>{part}</div>" for part in parts)


def _with_buffers(state: dict[str, Any], paths: list[list[Any]], buffers: list[bytes]) -> dict[str, Any]:
    """Return a copy of `state` with the binary values of its top level; deeper ones are not shown."""
    return {**state, **{path[0]: buffer for path, buffer in zip(paths, buffers, strict=False) if len(path) == 1}}


def _value(state: dict[str, Any]) -> str | None:
    """Return the value of a control as text: that of a selection is its label."""
    labels, index = state.get("_options_labels"), state.get("index")
    if isinstance(labels, (list, tuple)):
        chosen = index if isinstance(index, (list, tuple)) else () if index is None else (index,)
        return ", ".join(str(labels[each]) for each in chosen if each < len(labels))
    value = state.get("value")
    return None if value is None else str(value)[:LONGEST_VALUE]


def _bar(state: dict[str, Any]) -> Form:
    low, high, value = (float(state.get(name) or 0) for name in ("min", "max", "value"))
    part = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
    full = round(part * BAR_CHARACTERS)
    text = f"|{'█' * full}{' ' * (BAR_CHARACTERS - full)}|"
    return text, f'<progress value="{part:.4f}" max="1">{part:.0%}</progress>'


def _stripped(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).replace("\xa0", " ").strip()
