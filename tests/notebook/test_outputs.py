"""Output of cells as nbclient saves it: cleared and updated output, widgets, and text with carriage returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from openruntime_jupyter.schemas.tasks import WIDGET
from tests.support import Home

LIVE_PLOT = """%%openruntime --notify
import time
from IPython.display import clear_output, display
for epoch in range(30):
    clear_output(wait=True)
    display({'image/png': 'aGk=', 'text/plain': f'epoch {epoch}'}, raw=True)
    time.sleep(0.04)"""
UPDATES = """%%openruntime
import time
from IPython.display import display, HTML
for name in ('one', 'two'):
    display(HTML(name), display_id=name)
    print('after', name)
for n in range(30):
    display(HTML(f'one at {n}'), display_id='one', update=True)
    time.sleep(0.02)"""
UPDATE_OF_OTHER_CELL = """%%openruntime
from IPython.display import display, HTML
display(HTML('two of a later task'), display_id='two', update=True);"""
TQDM = """%%openruntime
import time
from tqdm.notebook import tqdm
for _ in tqdm(range(20), desc='train'):
    time.sleep(0.02)"""
CONTROLS = """%%openruntime
import ipywidgets as widgets
from IPython.display import display
slider = widgets.IntSlider(value=3, description='size')
display(widgets.VBox([slider, widgets.HTML('<table><tr><td>cell</td></tr></table>')]))
slider.value = 4
closed = widgets.IntProgress(description='gone')
display(closed)
closed.close()
widgets.interact(lambda k: print('called with', k), k=(0, 2));"""
OUTPUT_WIDGET = """%%openruntime
import time
import ipywidgets as widgets
from IPython.display import clear_output, display
print('before')
out = widgets.Output()
display(out)
for epoch in range(20):
    with out:
        clear_output(wait=True)
        print('epoch', epoch)
    time.sleep(0.03)
print('after')
with out:
    raise ValueError('caught by the widget')"""
BAR = "%%openruntime --bg\nimport sys\nfor n in range(0, 101, 10):\n    sys.stdout.write(f'\\r{n} %')\nprint()"
CELLS = (
    LIVE_PLOT,
    UPDATES,
    UPDATE_OF_OTHER_CELL,
    TQDM,
    CONTROLS,
    OUTPUT_WIDGET,
    BAR,
    "_openruntime.wait()",
    "%openruntime output _openruntime",
)


def text(output: Any) -> str:
    return str(output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", ""))


def test_saved_file_has_final_output(tmp_path: Path) -> None:
    sources = ("%load_ext openruntime_jupyter", *CELLS)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(env=Home(tmp_path).environment())
    _, live, updates, other, tqdm, controls, widget, _, _, again = [cell.outputs for cell in notebook.cells]
    assert WIDGET not in str(notebook.cells), "no page has the models of a worker"

    notification, line, plot = live
    assert "text/html" in notification["data"]
    assert text(line).startswith("✓ completed")
    assert text(plot) == "epoch 29"

    assert text(updates[0]).startswith("✓ completed")
    shown = [output["text"] if output["output_type"] == "stream" else output["data"]["text/html"] for output in updates[1:]]
    assert shown == ["one at 29", "after one\n", "two of a later task", "after two\n"]
    assert len(other) == 1, "the update is shown by the other cell"

    assert len(tqdm) == 2
    assert "train" in text(tqdm[1])
    assert "100%" in text(tqdm[1])
    assert "20/20" in text(tqdm[1])
    assert "worker" not in text(tqdm[1]), "a bar has no controls"

    said = "".join(map(text, controls))
    assert "size: 4" in said
    assert "belongs to a worker" in said
    assert "gone" not in said
    assert said.count("called with 1") == 1
    assert "<td>cell</td>" in controls[1]["data"]["text/html"]

    said = "".join(map(text, widget[1:]))
    assert "before\n" in said
    assert [line for line in said.splitlines() if "epoch" in line] == ["epoch 19"], "only the widget's output is cleared"
    assert "after\n" in said
    assert "ValueError: caught by the widget" in said

    assert "".join(map(text, again)) == "100 %\n"
