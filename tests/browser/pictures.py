"""Screenshots for README and docs from a real run: dashboard and extension in both themes, and a running cell. Run by `make pictures`.

All tasks are real: some train, fail, crash or wait, and a local model answers. This takes several minutes because the charts show the
recorded metrics. The script prints what it waits for.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser.chromium import close, run
from tests.browser.lab import APPS, LAB, App, Notebook, new_notebook, opened
from tests.support import Home, Server, running_server

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
THEMES = ("Light", "Dark")
MOST_BYTES = 200_000
SECONDS = 120
"""Fraction of the charts' five minutes that must have data."""

TRAIN = """%%openruntime --name "train the classifier" --in steps
import mlx.core as mx
from openruntime_jupyter import progress

x = mx.random.normal((2000, 256))
y = mx.tanh(x @ mx.random.normal((256, 1)))
w = mx.zeros((256, 1))
loss = mx.value_and_grad(lambda w: mx.mean((mx.tanh(x @ w) - y) ** 2))

for step in range(1, steps + 1):
    value, slope = loss(w)
    w = w - 0.5 * slope
    mx.eval(w)
    if step % 100 == 0:
        progress(step, steps, f"loss {value.item():.4f}")
    if step % 2000 == 0:
        print(f"step {step}: loss {value.item():.4f}")"""
WORK = """import time
import mlx.core as mx
from openruntime_jupyter import progress
for number in range({total}):
    a = mx.random.normal((700, 700))
    mx.eval(a @ a)
    time.sleep(0.25)
    progress(number + 1, {total}, "document " + str(number + 1))"""
DIE = "import os\nprint('reading the features', flush=True)\nos.kill(os.getpid(), 9)"
RAISE = "print('opening the table')\nopen('measurements.csv')"


def submit(server: Server, operation: str, name: str, parameters: dict[str, Any], **fields: Any) -> Any:
    """Submit a task like a notebook."""
    return server.submit(operation, parameters, name=name, origin="notebook", **fields)


def fill(server: Server) -> None:
    """Submit one task of every kind."""
    submit(server, "matrix_multiply", "warm up", {"size": 1024, "iterations": 20})
    submit(server, "python", "load measurements", {"code": RAISE})
    submit(server, "python", "extract features", {"code": DIE})
    body = {"workflow_type": "code_generation", "prompt": "Write a function that adds two numbers", "parameters": {"max_tokens": 24}}
    server.request("POST", "/ai/tasks", json={**body, "name": "ask for a function", "timeout": 280}, timeout=300)
    submit(server, "python", "embed the corpus", {"code": WORK.format(total=900)}, wait=False)
    submit(server, "python", "resize the pictures", {"code": WORK.format(total=500)}, wait=False)
    submit(server, "matrix_multiply", "nightly benchmark", {"size": 2048, "iterations": 30}, wait=False, priority=3)
    submit(server, "compute", "score the candidates", {}, wait=False, priority=8)
    submit(server, "memory_bandwidth", "bandwidth", {}, wait=False)


def say(what: str) -> None:
    """Print a message with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {what}\n")
    sys.stdout.flush()


async def use_theme(notebook: Notebook, theme: str) -> None:
    """Select a theme, and wait until charts and editors show it."""
    await notebook.menu("Settings", "Theme", f"JupyterLab {theme}")
    await notebook.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
    await notebook.page.wait_for_timeout(2500)


async def dashboard(server: Server, started: float) -> None:
    """Take screenshots of the dashboard in both themes, once its charts have enough data since `started`."""
    new_notebook(server, "dashboard.ipynb", "%load_ext openruntime_jupyter\n%openruntime dashboard")
    async with opened(server, "dashboard.ipynb") as notebook:
        page = notebook.page
        await page.keyboard.press("Control+b")  # hide the file browser
        say("tasks that end, fail and die, and a prompt")
        await asyncio.to_thread(fill, server)
        await notebook.run_all()
        await page.set_viewport_size({"width": 1180, "height": 1500})
        await page.locator(".or-tasks strong", has_text="embed the corpus").wait_for()
        left = max(5.0, SECONDS - (time.monotonic() - started))
        say(f"{left:.0f} seconds for the charts")
        await page.wait_for_timeout(1000 * left)
        for theme in THEMES:
            await use_theme(notebook, theme)
            box = await page.locator(".or-dashboard").bounding_box()
            last = await page.locator(".or-tasks tbody").last.bounding_box()
            assert box is not None
            assert last is not None
            height = last["y"] + last["height"] + 6 - box["y"]
            await page.screenshot(
                path=PICTURES / f"dashboard-{theme.lower()}.png",
                clip={"x": box["x"], "y": box["y"], "width": box["width"], "height": height},
            )
        await use_theme(notebook, "Light")
    for task in server.get("/tasks", params={"state": ["running", "pending"]})["tasks"]:
        server.request("DELETE", f"/tasks/{task['task_id']}")


async def cell(server: Server) -> None:
    """Take a screenshot of a running cell."""
    new_notebook(server, "cell.ipynb", "%load_ext openruntime_jupyter\nsteps = 20_000", TRAIN)
    async with opened(server, "cell.ipynb") as notebook:
        page = notebook.page
        await page.keyboard.press("Control+b")
        await page.set_viewport_size({"width": 1000, "height": 1100})
        await notebook.start_all()
        shown = page.locator(".jp-CodeCell").nth(1)
        await shown.get_by_text("step 8000").wait_for(timeout=300_000)
        await shown.screenshot(path=PICTURES / "cell.png")
        await stop(notebook)


async def extension(server: Server, app: App) -> None:
    """Take screenshots of the page with a running cell, the status line and the panel."""
    name = f"train-{app}.ipynb"
    new_notebook(server, name, "%load_ext openruntime_jupyter\nsteps = 100_000", TRAIN)
    async with opened(server, name, app) as notebook:
        page = notebook.page
        await page.set_viewport_size({"width": 1280, "height": 860})
        await page.locator(".jp-OpenRuntime-status:visible").click()
        await page.locator(".or-dashboard .or-header").wait_for()
        await notebook.start_all()
        submit(server, "compute", "score the candidates", {}, wait=False, priority=8)
        await page.locator(".jp-CodeCell").nth(1).get_by_text("step 8000").wait_for(timeout=300_000)
        for theme in THEMES:
            await use_theme(notebook, theme)
            await page.screenshot(path=PICTURES / f"{app}-{theme.lower()}.png")
        await use_theme(notebook, "Light")
        await stop(notebook)


async def stop(notebook: Notebook) -> None:
    """Cancel the task of the cell."""
    await notebook.page.click("[data-command='notebook:interrupt-kernel']")
    await notebook.done()


def main() -> int:
    """Take all screenshots. Return 1 if one is too large for a README."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    models = os.environ.get("OPENRUNTIME_TEST_MODELS", str(ROOT / ".venv" / "models"))
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        home.path.mkdir()
        with running_server(home, LAB, config={"OpenRuntimeApp": {"models_dir": models}}) as server:
            started = time.monotonic()
            say("a cell that trains")
            run(cell(server))
            run(dashboard(server, started))
            for app in APPS:
                say(f"the extension in {app}")
                run(extension(server, app))
            close()
    code = 0
    for picture in sorted(PICTURES.glob("*.png")):
        size = picture.stat().st_size
        sys.stdout.write(f"{picture.relative_to(ROOT)}: {size / 1000:.0f} kB{'' if size <= MOST_BYTES else ', which is too large'}\n")
        code |= size > MOST_BYTES
    return code


if __name__ == "__main__":
    sys.exit(main())
