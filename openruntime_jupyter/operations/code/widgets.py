"""Widgets of a task, displayed as HTML and text that follow the widgets' state, with the state for pages that can show it.

A page cannot reach the comms of a worker, whose widget models end with it. So each display of a widget is replaced by a static form, which
is updated while the state changes. Saved notebooks and the history have its last state. Next to it is the state of the models, from which
the notebook's kernel makes widgets for its pages while the task runs. Widgets with controls have no such state: what a user did there could
not reach the task.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

import comm
from comm.base_comm import BaseComm

from openruntime_jupyter.schemas.tasks import LIVE_WIDGET, WIDGET

REFERENCE = "IPY_MODEL_"
"""Prefix of a model's id in the state of another model."""
UPDATE_SECONDS = 0.1
"""Minimum interval between updates of the displays."""
MOST_CHARACTERS = 1_000_000
"""Maximum size of the state of one display as JSON. A larger one has a static form only."""
CHARACTERS_PER_SECOND = 2_000_000
"""Maximum rate of state: displays with much of it are updated less often."""
KNOWN = ("@jupyter-widgets/base", "@jupyter-widgets/controls", "@jupyter-widgets/output")
"""Modules whose models have a static form."""
BAR_CHARACTERS = 20
COLOURS = {"success": "--jp-success-color1,#2e7d32", "warning": "--jp-warn-color1,#ef6c00", "danger": "--jp-error-color1,#d32f2f"}
"""Colours of bars by their style, as in JupyterLab's theme, each with a fallback."""
LONGEST_VALUE = 1000
"""Maximum characters of a control's value."""
PASSIVE = ("Box", "HTML", "Label", "Progress", "Image", "Output", "Tab", "Accordion", "Stack", "Valid")
"""Parts of the names of models without controls."""
NO_CONTROLS = "The controls do not work: the widget belongs to a worker, which ends with the task"
NOT_SAVED = "Only the page in which its task ran shows this widget"

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


@dataclass(frozen=True)
class _Shown:
    """Display of a model: the models that it depends on, and its MIME data."""

    model: str
    models: set[str]
    form: dict[str, Any]


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
        self._encoded: dict[str, str] = {}  # states as JSON, made on demand
        self._shown: dict[str, _Shown] = {}  # by display id
        self._changed: set[str] = set()  # models, since the last update of the displays
        self._interval = UPDATE_SECONDS
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
            self._encoded.pop(model, None)
            self._changed.add(model)
            if kind == "comm_close":
                self._states.pop(model, None)
            elif "state" in data:
                changes = _with_buffers(data["state"], data.get("buffer_paths") or [], buffers)
                self._states.setdefault(model, {}).update(changes)
                if "msg_id" in changes and "Output" in self._name(model):
                    self._captures(model, bool(changes["msg_id"]))
            if self._shown and self._timer is None:
                self._timer = threading.Timer(self._interval, self.flush)
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
            self._shown[display_id] = shown = self._show(model)
            return {**rest, **shown.form}, display_id

    def flush(self) -> None:
        """Update the displays whose widgets have changed."""
        with self.lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            changed, self._changed, size = self._changed, set(), 0
            for display_id, before in list(self._shown.items()):
                if changed.isdisjoint(before.models):
                    continue
                self._shown[display_id] = shown = self._show(before.model)
                if shown.form != before.form:
                    self._update(shown.form, display_id)
                    size += len(shown.form.get(LIVE_WIDGET, ""))
                if shown.model not in self._states:
                    del self._shown[display_id]
            self._interval = max(UPDATE_SECONDS, size / CHARACTERS_PER_SECOND)

    def end_task(self) -> None:
        """Show the last state of the widgets. No output widget captures the output of a later task."""
        self.flush()
        self._capturing.clear()

    def _show(self, model: str) -> _Shown:
        """Return the static form of a displayed model, empty once the widget is closed, with its state if a page can show it."""
        models: set[str] = set()
        try:
            text, html = self._render(model, models)
        except (TypeError, ValueError, IndexError):  # the state of a foreign widget with a familiar name
            text = html = escape(self._name(model))
        known = [each for each in models if each in self._states and not self._foreign(each)]
        foreign = any(map(self._foreign, models))
        passive = all(any(part in self._name(each) for part in PASSIVE) for each in known)
        if note := NO_CONTROLS if not passive else NOT_SAVED if foreign else "":
            text += f"\n({note})"
            html += f"<div><small>{note}</small></div>"
        form = {"text/plain": text, "text/html": f"<div>{html}</div>" if html else ""}
        if passive and model in self._states:
            encoded = self._encode_tree(model)
            if sum(map(len, encoded.values())) <= MOST_CHARACTERS:
                values = ", ".join(f"{json.dumps(each)}: {value}" for each, value in encoded.items())
                form[LIVE_WIDGET] = f'{{"model": {json.dumps(model)}, "foreign": {json.dumps(foreign)}, "models": {{{values}}}}}'
            models.update(encoded)
        return _Shown(model, models, form)

    def _foreign(self, model: str) -> bool:
        return model in self._states and self._states[model].get("_model_module") not in KNOWN

    def _encode_tree(self, root: str) -> dict[str, str]:
        """Return the states of a model and of the models that it refers to as JSON, each after those."""
        ordered: dict[str, str] = {}

        def add(model: str, around: tuple[str, ...]) -> None:
            if model in self._states and model not in ordered and model not in around:
                encoded = self._encode(model)
                for reference in re.findall(f"{REFERENCE}([\\w-]+)", encoded):
                    add(reference, (*around, model))
                ordered[model] = encoded

        add(root, ())
        return ordered

    def _encode(self, model: str) -> str:
        if model not in self._encoded:
            paths: list[list[Any]] = []
            buffers: list[str] = []
            state = _without_buffers(self._states[model], [], paths, buffers)
            self._encoded[model] = json.dumps({"state": state, "paths": paths, "buffers": buffers}, default=str)
        return self._encoded[model]

    def _name(self, model: str) -> str:
        state = self._states.get(model, {})
        return str(state.get("_anywidget_id") or state.get("_model_name", "")).rpartition(".")[2].removesuffix("Model")

    def _render(self, model: str, seen: set[str]) -> Form:
        state, name = self._states.get(model), self._name(model)
        if state is None or model in seen:
            return "", ""
        seen.add(model)
        if isinstance(state.get("children"), (list, tuple)):
            return self._render_children(state["children"], state.get("titles"), name == "HBox", seen)
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
        return _labelled(label, (text, html))

    def _render_children(self, children: Any, titles: Any, row: bool, seen: set[str]) -> Form:
        forms = [self._render(str(child).removeprefix(REFERENCE), seen) for child in children]
        if isinstance(titles, (list, tuple)):  # of tabs, which are all shown
            labels = [*map(str, titles), *[""] * len(forms)]
            forms = [_labelled(label, form) for label, form in zip(labels, forms, strict=False)]
        texts, parts = [text for text, _ in forms if text], [html for _, html in forms if html]
        if row:
            cells = "".join(f"<span>{part}</span>" for part in parts)
            return " ".join(texts), f'<div style="display:flex;gap:4px;align-items:center">{cells}</div>' if cells else ""
        return "\n".join(texts), "".join(f"<div>{part}</div>" for part in parts)


def _with_buffers(state: dict[str, Any], paths: list[list[Any]], buffers: list[bytes]) -> dict[str, Any]:
    """Return a copy of `state` with its binary values, which ipywidgets sends apart."""
    state = dict(state)
    for path, buffer in zip(paths, buffers, strict=False):
        place: Any = state
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = buffer
    return state


def _without_buffers(value: Any, path: list[Any], paths: list[list[Any]], buffers: list[str]) -> Any:
    """Return a copy of `value` without its binary values. Append their places to `paths`, and them as base64 to `buffers`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        paths.append(path)
        buffers.append(base64.b64encode(value).decode())
        return None
    if isinstance(value, dict):
        return {key: _without_buffers(each, [*path, key], paths, buffers) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_buffers(each, [*path, number], paths, buffers) for number, each in enumerate(value)]
    return value


def _value(state: dict[str, Any]) -> str | None:
    """Return the value of a control as text: that of a selection is its label."""
    labels, index = state.get("_options_labels"), state.get("index")
    if isinstance(labels, (list, tuple)):
        chosen = index if isinstance(index, (list, tuple)) else () if index is None else (index,)
        return ", ".join(str(labels[each]) for each in chosen if each < len(labels))
    value = state.get("value")
    return None if value is None else str(value)[:LONGEST_VALUE]


def _labelled(label: str, form: Form) -> Form:
    text, html = form
    return (f"{label}: {text}", f"{escape(label)}: {html}") if label else form


def _bar(state: dict[str, Any]) -> Form:
    low, high, value = (float(state.get(name) or 0) for name in ("min", "max", "value"))
    part = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
    full = round(part * BAR_CHARACTERS)
    text = f"|{'█' * full}{' ' * (BAR_CHARACTERS - full)}|"
    colour = COLOURS.get(str(state.get("bar_style")), "--jp-brand-color1,#1976d2")
    style = f"width:14em;height:1.2em;vertical-align:middle;accent-color:var({colour})"
    return text, f'<progress value="{part:.4f}" max="1" style="{style}">{part:.0%}</progress>'


def _stripped(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).replace("\xa0", " ").strip()
