"""Widgets of a task as widgets of the notebook's kernel: messages to the page, and what remains of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openruntime_jupyter.runtime.tasks.entry import OutputBuffer
from openruntime_jupyter.schemas.tasks import LIVE_WIDGET, WIDGET
from tests.notebook.conftest import SECONDS, Kernel, of_server, running_kernel
from tests.support import Home, running_server

BOX = """%%openruntime
import time
import ipywidgets as widgets
from IPython.display import display
bar = widgets.IntProgress(max=2000)
image = widgets.Image(value=b'first', format='png')
display(widgets.HBox([bar, image]))
for step in range(2000):
    bar.value = step + 1
    time.sleep(0.0005)
image.value = b'second'
closed = widgets.Label('closed')
display(closed)
time.sleep(0.3)
closed.close()
time.sleep(0.3)
"""
SLIDER = "%%openruntime\nimport ipywidgets as widgets, time\ndisplay(widgets.VBox([widgets.IntSlider(value=3), widgets.IntProgress()]))"
LARGE = "%%openruntime\nimport ipywidgets as widgets\ndisplay(widgets.Label('x' * 1_100_000))"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start a kernel of a server whose pages show widgets."""
    home = Home(tmp_path_factory.mktemp("kernel"))
    with (
        running_server(home) as server,
        running_kernel(home, {**of_server(server), "OPENRUNTIME_LIVE_WIDGETS": "1"}) as running,
    ):
        yield running


def messages(kernel: Kernel, code: str) -> list[dict[str, Any]]:
    """Run a cell and return its messages."""
    sent = kernel.client.execute(code)
    found: list[dict[str, Any]] = []
    while not found or found[-1]["content"].get("execution_state") != "idle":
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") == sent:
            found.append(message)
    return found


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in found if message["msg_type"] == kind]


def test_models_of_task_live_until_it_ends(kernel: Kernel) -> None:
    found = messages(kernel, BOX)
    opened = {message["content"]["comm_id"]: message for message in of("comm_open", found)}
    states = {model: message["content"]["data"]["state"] for model, message in opened.items()}
    known: set[str] = set()
    for model, state in states.items():  # in order
        references = {part.split('"')[0] for part in json.dumps(state).split("IPY_MODEL_")[1:]}
        assert references <= known, "the page knows the models that a new one refers to"
        known.add(model)
    (bar,) = (model for model, state in states.items() if state["_model_name"] == "IntProgressModel")
    (image,) = (model for model, state in states.items() if state["_model_name"] == "ImageModel")
    assert opened[image]["buffers"][0].tobytes() == b"first"

    updates = of("comm_msg", found)
    sent = [each["content"]["data"]["state"] for each in updates if each["content"]["comm_id"] == bar]
    values = [state["value"] for state in sent if "value" in state]
    assert values[-1] == 2000, "the last state is never left out"
    assert len(values) < 1000, "changes are coalesced"
    assert [each["buffers"][0].tobytes() for each in updates if each["content"]["comm_id"] == image] == [b"second"]

    assert {each["content"]["comm_id"] for each in of("comm_close", found)} == set(states), "nothing remains in the kernel"
    shown: dict[str, dict[str, Any]] = {}
    for message in found:
        if message["msg_type"] in ("display_data", "update_display_data"):
            shown[message["content"]["transient"]["display_id"]] = message["content"]
    assert [each for each in of("display_data", found) if WIDGET in each["content"]["data"]]
    assert not any(WIDGET in each["data"] or LIVE_WIDGET in each["data"] or each["metadata"] for each in shown.values())
    assert any("100%" in each["data"].get("text/html", "") for each in shown.values())


@pytest.mark.parametrize("code", [SLIDER, LARGE], ids=["controls", "too large"])
def test_controls_and_large_widgets_have_a_static_form_only(kernel: Kernel, code: str) -> None:
    found = messages(kernel, code)
    assert of("comm_open", found) == []
    (form,) = (each["content"]["data"] for each in of("display_data", found) if "ort" not in each["content"]["data"].get("text/html", ""))
    assert set(form) == {"text/plain", "text/html"}
    assert ("controls do not work" in form["text/plain"]) is (code == SLIDER)


def test_output_of_ended_task_has_static_forms(kernel: Kernel) -> None:
    again = kernel.run("%openruntime output _openruntime")
    assert not any(LIVE_WIDGET in output.get("data", {}) for output in again.outputs)
    buffer = OutputBuffer(1000)
    buffer.display({"output_type": "display_data", "data": {"text/plain": "bar", LIVE_WIDGET: "{}"}, "metadata": {}, "display_id": "one"})
    assert buffer.read(0)[0][0].data == {"text/plain": "bar", LIVE_WIDGET: "{}"}
    assert buffer.whole("task_1").items[0].data == {"text/plain": "bar"}
