"""Time from a page reload in JupyterLab until the dashboard is live again, compared with a plain ipywidgets widget in the same page.

Both show a number that the kernel increments ten times per second; in the dashboard it is the progress of a task. A widget is live once its
number differs from the first one on the new page. Times start with the reload, so they include the start of JupyterLab.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat

from benchmarks.rows import Row, at_most, median, require_chromium
from tests.browser import chromium
from tests.browser.lab import LAB, Notebook, opened
from tests.support import Home, Server, running_server

RELOADS = 7
LONGEST = 120_000.0
"""Milliseconds."""
REACH = 1.2
"""3 s if the plain widget takes 2.5 s, as on an idle machine. Most of it is the start of JupyterLab."""

PEER = """import threading, time
from ipywidgets import Label
peer = Label("0").add_class("peer")
def count():
    while True:
        time.sleep(0.1)
        peer.value = str(int(peer.value) + 1)
threading.Thread(target=count, daemon=True).start()
peer"""
OURS = "%load_ext openruntime_jupyter\n%openruntime dashboard"
TASK = "import time\nfrom openruntime_jupyter import progress\nfor n in range(10**6):\n    progress(n, 10**6)\n    time.sleep(0.1)"
LOOK = """(() => {
    const places = { ours: ".or-tasks .or-line[data-state=running] .or-how", peer: ".peer" };
    const first = {};
    window.live = {};
    const look = () => {
        for (const [name, place] of Object.entries(places)) {
            const text = document.querySelector(place)?.textContent;
            if (!text || name in window.live) continue;
            first[name] ??= text;
            if (first[name] !== text) window.live[name] = performance.now();
        }
        if (Object.keys(window.live).length < 2) setTimeout(look, 10);
    };
    look();
})()"""


async def reloads(server: Server) -> list[tuple[float, float]]:
    """Measure the seconds of the dashboard and of the peer for each reload."""
    found = []
    async with opened(server, "reload.ipynb") as notebook:
        page = notebook.page
        await notebook.run_all()
        await saved(notebook)
        await page.add_init_script(LOOK)
        for _ in range(RELOADS):
            await page.reload()
            await page.wait_for_function("Object.keys(window.live ?? {}).length === 2", timeout=LONGEST)
            live = await page.evaluate("window.live")
            found.append((live["ours"] / 1000, live["peer"] / 1000))
    return found


async def saved(notebook: Notebook) -> None:
    """Save the outputs in the notebook file, so that a reloaded page shows them."""
    async with notebook.page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
        await notebook.page.keyboard.press("Control+s")


def rows() -> list[Row]:
    """Return the row of the seconds until both are live again."""
    require_chromium()
    with tempfile.TemporaryDirectory() as folder, running_server(home := Home(Path(folder)), LAB) as server:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (PEER, OURS)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, home.path / "reload.ipynb")
        server.submit("python", {"code": TASK}, name="counts", wait=False)
        pairs = chromium.loop().run_until_complete(reloads(server))
        chromium.close()
    ours, peer = (median([pair[place] for pair in pairs]) for place in (0, 1))
    what = "reload of JupyterLab until the dashboard is live, compared with a Label of ipywidgets"
    return [at_most(what, ours, peer, REACH, "s")]
