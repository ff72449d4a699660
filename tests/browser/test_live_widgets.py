"""Widgets of tasks in JupyterLab and Notebook 7: live while the cell follows the task, and never missing later."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.async_api import expect

from tests.browser.chromium import run
from tests.browser.lab import APPS, LAB, App, new_notebook, opened
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LOAD = "%load_ext openruntime_jupyter"
TQDM = """%%openruntime
import os, time
from tqdm.notebook import tqdm
bar = tqdm(range(10_000), desc='train')
for step in bar:
    time.sleep(0.02)
    if os.path.exists('go-tqdm'):
        break"""
FOREIGN = """%%openruntime
import os, time
import anywidget, traitlets
class Counter(anywidget.AnyWidget):
    _esm = "export default { render({ model, el }) { const show = () => { el.textContent = `count ${model.get('n')}`; };" \\
        "el.className = 'counter'; model.on('change:n', show); show(); } }"
    n = traitlets.Int(0).tag(sync=True)
display(counter := Counter())
while not os.path.exists('go-foreign'):
    time.sleep(0.02)
    counter.n += 1"""
BOX = """%%openruntime --name box
import time
import ipywidgets as widgets
bar, note = widgets.IntProgress(max=10_000, description='steps'), widgets.HTML()
display(widgets.HBox([bar, note]), widgets.Tab([widgets.Label('left'), widgets.Label('right')], titles=('one', 'two')))
while True:
    time.sleep(0.02)
    bar.value += 1
    note.value = f'<b>step {bar.value}</b>'"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("lab"))
    with running_server(home, LAB) as running:
        yield running


@pytest.mark.parametrize("app", APPS)
def test_widgets_are_live_and_saved_as_static_forms(server: Server, app: App) -> None:
    name = f"widgets-{app}.ipynb"
    new_notebook(server, name, LOAD, TQDM, FOREIGN, BOX)
    for file in ("go-tqdm", "go-foreign"):
        (server.home.path / file).unlink(missing_ok=True)

    async def story() -> None:
        async with opened(server, name, app) as notebook:
            page = notebook.page

            async def save() -> str:
                async with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
                    await page.keyboard.press("Control+s")
                return (server.home.path / name).read_text()

            tqdm, foreign, box = (page.locator(".jp-CodeCell").nth(number).locator(".jp-OutputArea") for number in (1, 2, 3))
            await notebook.start_all()
            await expect(tqdm.locator(".widget-hprogress")).to_be_visible()
            await expect(tqdm).to_contain_text(re.compile(r"[1-9]\d+/10000"))
            (server.home.path / "go-tqdm").touch()
            await expect(tqdm.locator("progress")).to_be_visible()
            await expect(tqdm.locator(".widget-hprogress")).to_have_count(0)

            await expect(foreign.locator(".counter")).to_contain_text(re.compile(r"count [1-9]\d"))
            (server.home.path / "go-foreign").touch()
            await expect(foreign).to_contain_text("completed in")
            await expect(foreign.locator(".counter")).to_be_visible()

            await expect(box.locator(".widget-hprogress")).to_be_visible()
            await expect(box).to_contain_text(re.compile(r"step [1-9]\d"))
            await box.get_by_role("tab", name="two").click()
            await expect(box.get_by_text("right")).to_be_visible()
            assert "widget-view" not in await save(), "the file of a running cell names no models"
            await notebook.restart()
            await expect(box).to_contain_text("no longer watched")
            await expect(box.locator("progress").first).to_be_visible()
            await expect(box).to_contain_text("two: right")
            assert "widget-view" not in await save()
            server.request("DELETE", f"/tasks/{server.get('/tasks', params={'state': 'running'})['tasks'][0]['task_id']}")
            await page.reload()
            await notebook.idle()
            await expect(tqdm.locator("progress")).to_be_visible()
            await expect(tqdm.get_by_role("button", name="Retry")).to_be_visible()
            await expect(foreign).to_contain_text("Counter")
            await expect(box.locator("progress").first).to_be_visible()
            assert "model not found" not in await page.locator(".jp-Notebook").inner_text()

    run(story())
