"""Notebooks with live widgets of tasks, as the server saves them."""

from __future__ import annotations

from typing import Any

import nbformat

from openruntime_jupyter.schemas.tasks import DASHBOARD, MARK, WIDGET
from tests.support import Server

VIEW = {"model_id": "m", "version_major": 2, "version_minor": 0}


def output(**metadata: Any) -> Any:
    return nbformat.v4.new_output("display_data", {WIDGET: VIEW, "text/plain": "bar"}, metadata=metadata)


def test_saved_notebook_has_static_forms_of_widgets_of_tasks(jupyter: Server) -> None:
    dashboard = nbformat.v4.new_output("display_data", {WIDGET: VIEW, DASHBOARD: {"runtime": "rt_1"}, "text/plain": "tasks"})
    text = nbformat.v4.new_output("stream", text="text")
    cell = nbformat.v4.new_code_cell("bar", outputs=[output(**MARK, other=1), output(), dashboard, text])
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("text")])
    contents = f"{jupyter.root}/api/contents/widgets.ipynb"
    body = {"type": "notebook", "format": "json", "content": notebook}
    jupyter.client.put(contents, headers=jupyter.headers, json=body, timeout=60).raise_for_status()
    saved = jupyter.client.get(contents, headers=jupyter.headers, timeout=60).json()["content"]
    task, own, dashboard, _ = saved["cells"][0]["outputs"]
    assert task["data"] == {"text/plain": "bar"}
    assert task["metadata"] == {"other": 1}
    assert own["data"] == {WIDGET: VIEW, "text/plain": "bar"}, "widgets of the notebook's own cells are saved as they are"
    assert dashboard["data"] == {DASHBOARD: {"runtime": "rt_1"}, "text/plain": "tasks"}
    jupyter.client.delete(contents, headers=jupyter.headers, timeout=60).raise_for_status()
