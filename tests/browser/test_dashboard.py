"""The dashboard in JupyterLab: live while a cell computes, its buttons work while one blocks, and it comes back after a reload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.async_api import expect

from tests.browser.lab import LAB, Notebook, opened
from tests.browser.test_quickstart import named, new_notebook, until
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

SHOW = "%load_ext openruntime_jupyter\n%openruntime dashboard"
BLOCK = "%%openruntime --name endless\nimport time\nprint('it runs', flush=True)\nwhile True:\n    time.sleep(0.05)"
OVERFLOW = """() => {
    const dashboard = document.querySelector('.or-dashboard');
    const right = dashboard.getBoundingClientRect().right + 1;
    return [...dashboard.querySelectorAll('*')]
        .filter(each => each.getClientRects().length && !each.closest('.or-scroll') && each.getBoundingClientRect().right > right)
        .map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`);
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("lab"))
    with running_server(home, LAB, base_url="/user/x/") as running:
        yield running


async def picture(notebook: Notebook) -> bytes:
    """The pixels of the chart of the queue."""
    found: bytes = await notebook.page.locator(".or-chart", has_text="Queue").locator("canvas").screenshot()
    return found


def test_it_is_live_and_its_buttons_work_while_a_cell_blocks(server: Server) -> None:
    new_notebook(server, "live.ipynb", SHOW, BLOCK)

    async def story() -> None:
        async with opened(server, "live.ipynb") as notebook:
            page = notebook.page
            await notebook.start_all()
            await until(lambda: bool(named(server, "endless", "running")), 30, "the task runs")
            row = page.locator(".or-tasks tbody", has_text="endless")
            await expect(row).to_contain_text("running", timeout=10_000)
            await expect(page.locator(".or-header")).to_contain_text("healthy")
            before = await picture(notebook)
            await page.wait_for_timeout(2500)
            assert await picture(notebook) != before, "the chart changes while the cell computes"
            await row.get_by_role("button", name="Show output and details").click()
            await expect(row.locator("pre")).to_contain_text("it runs", timeout=5_000)
            await row.get_by_role("button", name="Stop this task").click()
            await until(lambda: bool(named(server, "endless", "cancelled")), 5, "the task is cancelled, though the kernel is busy")
            await expect(row).to_contain_text("cancelled", timeout=5_000)
            await notebook.done()
            assert [line for line in notebook.console if "openruntime" in line.lower() or "or-" in line] == []

    asyncio.run(story())


def test_it_comes_back_after_a_reload_and_says_when_the_kernel_is_gone(server: Server) -> None:
    new_notebook(server, "reload.ipynb", SHOW, "print('ready')")

    async def story() -> None:
        async with opened(server, "reload.ipynb") as notebook:
            page = notebook.page
            await notebook.run_all()
            await expect(page.locator(".or-card")).to_contain_text("memory", timeout=10_000)
            await notebook.menu("File", "Save Notebook")
            await page.wait_for_timeout(1000)
            await page.reload()
            await expect(page.locator(".or-card")).to_contain_text("memory", timeout=60_000)
            await expect(page.locator(".or-header")).to_contain_text("healthy", timeout=10_000)
            before = await picture(notebook)
            await page.wait_for_timeout(2500)
            assert await picture(notebook) != before, "it is live again"
            await notebook.menu("Kernel", "Shut Down Kernel")
            await expect(page.locator(".or-header")).to_contain_text(re.compile("kernel gone"), timeout=15_000)
            await expect(page.locator(".or-banner")).to_contain_text("run this cell again")

    asyncio.run(story())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_narrow_panel_and_a_form_runs_an_operation(server: Server, dark: bool) -> None:
    new_notebook(server, f"narrow{dark}.ipynb", SHOW)

    async def story() -> None:
        async with opened(server, f"narrow{dark}.ipynb") as notebook:
            page = notebook.page
            if dark:
                await notebook.menu("Settings", "Theme", "JupyterLab Dark")
            await notebook.run_all()
            await expect(page.locator(".or-card")).to_contain_text("memory", timeout=10_000)
            await page.get_by_text("Run an operation").click()
            await page.get_by_label("Operation").select_option("matrix_multiply")
            await page.locator(".or-fields label", has_text=re.compile("^size")).locator("input").fill("32")
            await page.get_by_role("button", name="Run", exact=True).click()
            await expect(page.locator(".or-tasks")).to_contain_text("matrix_multiply", timeout=20_000)
            await page.keyboard.press("Control+b")  # without the file browser
            await page.set_viewport_size({"width": 480, "height": 1600})
            await page.wait_for_timeout(1000)
            assert await page.evaluate(OVERFLOW) == []

    asyncio.run(story())
