"""Tables fit their cell: beside Lab's file browser, in Notebook 7, and on a narrow page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.async_api import Page, expect

from tests.browser.lab import LAB, App, new_notebook, opened
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SHOW = "%load_ext openruntime_jupyter\n%openruntime tasks"
OTHERS = ("status", "devices", "workers", "operations", "agents", "hosts", "")
"""Commands that show tables, a note with a long command, and the help."""
EVERY_COLUMN = """from openruntime_jupyter import connect
from openruntime_jupyter.schemas.tasks import TaskPage
from openruntime_jupyter.notebook.display.tasks import TaskTable
page = connect().tasks()
page.tasks = [task.model_copy(update=dict(owner=owner, here=False, device_used=device, submitted_at="2020-05-05T12:00:00.000000Z"))
              for task in page.tasks for owner, device in (("somebody@example.org", "device_0"), (None, "device_1"))]
TaskTable(page, {"device_0": "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "device_1": "Apple M3 Ultra"})"""
"""A table with every column: several users and devices, and another day."""
TOO_WIDE = """() => [...document.querySelectorAll('.ort-t')].filter(each => each.scrollWidth > each.clientWidth + 1)
    .map(each => `${each.querySelector('caption').textContent}: ${each.scrollWidth} in ${each.clientWidth}`)"""
BROKEN_WORDS = "() => [...document.querySelectorAll('.u')].filter(each => each.getClientRects().length > 1).map(each => each.textContent)"
BROKEN_IDS = "() => [...document.querySelectorAll('code.i')].filter(each => each.clientHeight > 30).map(each => each.textContent)"
CUT_CODE = """() => [...document.querySelectorAll('.ort > div code')].filter(each =>
    each.getBoundingClientRect().right > each.closest('.ort').getBoundingClientRect().right + 1).map(each => each.textContent)"""
CARDS = """() => [...document.querySelectorAll('.ort-k tbody tr')].every(row => getComputedStyle(row).display === 'flex')"""
HEADS = """() => [...document.querySelectorAll('.jp-CodeCell .ort-k')].slice(0, 1).flatMap(each =>
    [...each.querySelectorAll('th')].map(head => head.textContent))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(Home(tmp_path_factory.mktemp("tables")), LAB) as running:
        for number in range(3):
            running.submit("matrix_multiply", {"size": 16}, name=f"multiply the {number}th block of a matrix by another one, and then some")
        running.submit("python", {"code": "raise KeyError(1)"}, name="a" * 60, priority=8)
        running.submit("matrix_multiply", {"size": 16})
        yield running


@pytest.mark.parametrize(("app", "dark"), [("lab", False), ("notebook7", True)])
async def test_tables_fit_their_cell(server: Server, app: App, dark: bool) -> None:
    name = f"tables-{app}-{dark}.ipynb"
    new_notebook(server, name, SHOW, *(f"%openruntime {word}".strip() for word in OTHERS), EVERY_COLUMN)
    async with opened(server, name, app) as notebook:
        page = notebook.page
        await notebook.menu("Settings", "Theme", "JupyterLab Dark" if dark else "JupyterLab Light")
        await notebook.run_all()
        assert await notebook.errors() == []
        assert await page.locator(".ort-t").count() >= len(OTHERS)
        assert await page.evaluate(HEADS) == ["state", "task", "ran", "submitted", "priority", "id"], "common columns are omitted"
        assert await page.evaluate(TOO_WIDE) == [], "beside the file browser"
        await expect(page.locator(".u", has_text="matrix_multiply").first).to_be_visible()
        assert await page.evaluate(BROKEN_WORDS) == []
        if app == "lab":
            await page.keyboard.press("Control+b")
        await narrow(page)
        assert await page.evaluate(TOO_WIDE) == [], "on a narrow page"
        assert await page.evaluate(CARDS)
        assert await page.evaluate(BROKEN_WORDS) == []
        assert await page.evaluate(BROKEN_IDS) == []
        assert await page.evaluate(CUT_CODE) == []


async def narrow(page: Page) -> None:
    """Set the page width to that of a phone or a side panel."""
    await page.set_viewport_size({"width": 480, "height": 1600})
    await page.wait_for_function("document.querySelector('.jp-Notebook').clientWidth <= 480")
