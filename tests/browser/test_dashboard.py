"""The dashboard in JupyterLab and Notebook 7: updates and buttons while a cell runs, and reconnection."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import pytest
from playwright.async_api import Error, Locator, Page, expect

from tests.browser.lab import APPS, LAB, App, Notebook, new_notebook, opened, until
from tests.browser.test_quickstart import named
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SHOW = "%load_ext openruntime_jupyter\n%openruntime dashboard"
BLOCK = """%%openruntime --name endless
import time
from IPython.display import clear_output
while True: clear_output(wait=True); print('50 %\\rit runs', flush=True); time.sleep(0.2)"""
DIE = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
OVERFLOW = """() => {
    const dashboard = document.querySelector('.or-dashboard');
    const right = dashboard.getBoundingClientRect().right + 1;
    const seen = each => each.getClientRects().length && !each.closest('.or-hidden, thead, pre, .u-wrap');
    const wide = [...dashboard.querySelectorAll('*')].filter(each => seen(each) && each.getBoundingClientRect().right > right);
    const cut = [...dashboard.querySelectorAll('button, td, th, h3, h4, dt, dd, label, legend, .or-state')]
        .filter(each => seen(each) && each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflow !== 'visible');
    const own = dashboard.scrollWidth > dashboard.clientWidth + 1 ? [dashboard] : [];
    return [...wide, ...cut, ...own].map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`);
}"""

DRAWN = """() => [...document.querySelectorAll('.or-dashboard .uplot')].every(plot =>
    !plot.parentElement.clientWidth || Math.abs(plot.offsetWidth - plot.parentElement.clientWidth) < 2)"""
"""Script that checks that the charts are as wide as their containers."""


async def changes(chart: Locator, what: str) -> None:
    """Wait until the pixels of a chart change."""
    before = await drawn(chart)
    deadline = asyncio.get_running_loop().time() + 90
    while await drawn(chart) == before:
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.2)


async def drawn(chart: Locator) -> bytes:
    """Return the pixels of a chart. A loading page may replace the chart, so retry."""
    for _ in range(5):
        try:
            return await chart.screenshot()
        except Error as problem:
            if "not attached" not in problem.message:
                raise
    raise AssertionError("the chart is replaced continuously")


def queue(page: Page) -> Locator:
    return page.get_by_label("Queue", exact=True).locator("canvas")


def rows(page: Page, name: str) -> Locator:
    return page.locator(".or-tasks tbody").filter(has=page.locator("strong", has_text=re.compile(f"^{name}$")))


def alert(page: Page) -> Locator:
    """Locate the alert of the dashboard, as opposed to Lab's alerts."""
    return page.locator(".or-dashboard").get_by_role("alert").first


async def live(page: Page) -> None:
    """Wait until the dashboard shows the runtime."""
    await expect(page.locator(".or-header")).to_contain_text("healthy")
    await expect(page.locator(".or-cards .or-card").first).to_contain_text("memory")


@pytest.mark.parametrize("app", APPS)
async def test_dashboard_is_live_while_a_cell_blocks(server: Server, app: App) -> None:
    new_notebook(server, f"live-{app}.ipynb", SHOW, "")
    async with opened(server, f"live-{app}.ipynb", app) as notebook:
        page = notebook.page
        await notebook.run_all()
        # Not with Run All: on a slow machine, Lab loses the second cell while it connects to the kernel.
        await page.locator(".jp-CodeCell").nth(1).locator(".cm-content").fill(BLOCK.replace("endless", f"endless-{app}"))
        await notebook.menu("Run", "Run Selected Cell")
        await until(lambda: bool(named(server, f"endless-{app}", "running")), "the task runs")
        await live(page)
        row = rows(page, f"endless-{app}")
        await expect(row).to_contain_text("running")
        await changes(queue(page), "the chart changes while the cell computes")
        await row.get_by_role("button", name="Details and output").click()
        await expect(row.get_by_label("Output", exact=True)).to_contain_text("it runs")
        await page.get_by_role("radio", name="1 h", exact=True).check()
        await expect(page.get_by_role("group", name="Charts", exact=True)).to_have_attribute("aria-busy", "false")
        await expect(row.get_by_label("Output", exact=True)).to_have_text(re.compile(r"^\s*it runs\s*$"))
        await row.get_by_role("button", name=f"Cancel endless-{app}").click()
        await until(lambda: bool(named(server, f"endless-{app}", "cancelled")), "the task is cancelled, though the kernel is busy")
        await expect(row).to_contain_text("cancelled")
        await expect(row.get_by_role("button", name=f"Retry endless-{app}")).to_be_visible()
        await notebook.done()


async def test_dashboard_reports_lost_server_and_kernel_and_survives_reload(server: Server) -> None:
    new_notebook(server, "reload.ipynb", SHOW, "print('ready')")
    async with opened(server, "reload.ipynb", "notebook7") as notebook:
        page = notebook.page
        await notebook.run_all()
        await live(page)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await expect(page.locator(".or-header")).to_contain_text("no answer")
            await expect(alert(page)).to_contain_text("from Jupyter's server")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await live(page)
        await expect(alert(page)).to_be_hidden()
        await notebook.idle()
        await notebook.menu("Kernel", "Shut Down Kernel")
        await expect(page.locator(".or-header")).to_contain_text("kernel gone")
        await expect(alert(page)).to_contain_text("run this cell again")
        as_of = await page.locator(".or-header").inner_text()
        assert re.search(r"running · \d+ waiting · as of \d+ \w+ \d\d:\d\d", as_of)
        await save(page)
        await page.reload()
        await live(page)
        await changes(queue(page), "the page's own dashboard is live without the kernel")


@pytest.mark.parametrize("app", APPS)
async def test_saved_dashboard_of_another_runtime_shows_its_figures(server: Server, app: App) -> None:
    name = f"other-{app}.ipynb"
    new_notebook(server, name, SHOW)
    async with opened(server, name, app) as notebook:
        page = notebook.page
        await notebook.run_all()
        await live(page)
        await save(page)
        path = server.home.path / name
        runtime = server.get("/health")["runtime"]
        saved = path.read_text()
        assert runtime in saved
        path.write_text(saved.replace(runtime, "rt_of_a_kernel_that_has_ended"))
        await page.reload()
        output = page.locator(".jp-OutputArea-output")
        await expect(output.filter(has_text="healthy")).to_contain_text("as of")
        await expect(output.filter(has_text="model not found")).to_have_count(0)


async def save(page: Page) -> None:
    """Save the notebook."""
    async with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
        await page.keyboard.press("Control+s")


async def test_dashboard_fits_wide_and_narrow_pages(server: Server) -> None:
    new_notebook(server, "narrow.ipynb", SHOW)
    server.submit("python", {"code": "print('x' * 200)\n{}['a key that is not there']"}, name="a task with a long name " * 4)
    async with opened(server, "narrow.ipynb") as notebook:
        page = notebook.page
        await notebook.menu("Settings", "Theme", "JupyterLab Dark")
        await notebook.run_all()
        await live(page)
        assert await page.evaluate("document.body.dataset.jpThemeLight") == "false"
        await page.get_by_role("button", name="Post-mortem").first.click()
        await expect(page.locator(".or-details")).to_contain_text("KeyError")
        await page.get_by_text("Run an operation", exact=True).click()
        await page.get_by_text("Insights", exact=True).click()
        await expect(page.locator(".or-findings li").first).to_be_visible()
        for column in ("submitted", "owner"):
            await expect(page.get_by_role("columnheader", name=column)).to_be_visible()  # with the file browser open
        assert await page.evaluate(OVERFLOW) == []
        await page.keyboard.press("Control+b")  # hide the file browser
        for width in (1280, 800, 480):
            await page.set_viewport_size({"width": width, "height": 1600})
            await expect(page.locator(".or-header")).to_be_visible()
            await settled(page)
            assert await page.evaluate(OVERFLOW) == [], width


async def settled(page: Page) -> None:
    """Wait until the charts have adapted to the page's width."""
    await page.wait_for_timeout(500)
    await page.wait_for_function(DRAWN)


async def test_form_runs_operation_and_shows_field_errors(server: Server) -> None:
    new_notebook(server, "form.ipynb", SHOW)
    async with opened(server, "form.ipynb") as notebook:
        notebook.expected.append("422")
        page = notebook.page
        await notebook.run_all()
        await live(page)
        await page.get_by_text("Run an operation", exact=True).click()
        form = page.locator(".or-dashboard form")
        await form.get_by_label("Operation", exact=True).select_option("matrix_multiply")
        field = form.locator(".or-field").filter(has=page.get_by_label("size", exact=True))
        size = field.get_by_label("size", exact=True)
        run = form.get_by_role("button", name="Run", exact=True)
        await size.fill("-5")
        await run.click()
        await expect(field.get_by_role("alert")).to_have_text("It must be a whole number from 1 to 65,536.")
        await expect(size).to_be_focused()
        await expect(size).to_have_attribute("aria-invalid", "true")
        await size.fill("")
        await form.get_by_label("m", exact=True).fill("8")
        await run.click()
        await expect(form.locator("> .or-wrong")).to_contain_text("m, n and k")
        await form.get_by_label("m", exact=True).fill("")
        await size.fill("32")
        await form.get_by_label("name", exact=True).fill("by the form")
        await form.get_by_label("priority", exact=True).fill("7")
        await run.click()
        await expect(rows(page, "by the form")).to_contain_text("completed")
        await expect(form.get_by_role("status")).to_contain_text("completed")
    (task,) = named(server, "by the form", "completed")
    assert (task["operation"], task["priority"], task["origin"]) == ("matrix_multiply", 7, "notebook")


async def test_dead_worker_has_post_mortem_and_keyboard_retry(server: Server) -> None:
    new_notebook(server, "dead.ipynb", SHOW)
    server.submit("python", {"code": DIE}, name="it dies")
    async with opened(server, "dead.ipynb") as notebook:
        page = notebook.page
        await notebook.run_all()
        await live(page)
        row = rows(page, "it dies").first
        opens = row.get_by_role("button", name="Post-mortem")
        await opens.focus()
        await page.keyboard.press("Enter")
        await expect(row.locator(".or-post-mortem")).to_contain_text("9 (SIGKILL)")
        await expect(row.get_by_label("Output", exact=True)).to_contain_text("last words")
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is visible"
        await page.keyboard.press("Escape")
        await expect(row.locator(".or-post-mortem")).to_be_hidden()
        await expect(opens).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(row.get_by_role("button", name="Retry it dies")).to_be_focused()
        await page.keyboard.press("Space")
        await until(lambda: len(named(server, "it dies", "failed")) == 2, "it has died again")
        await expect(rows(page, "it dies")).to_have_count(2)
        await jupyter_keeps_its_hands_off(notebook)


async def jupyter_keeps_its_hands_off(notebook: Notebook) -> None:
    """Check that Jupyter's single-key shortcuts and arrow keys do not act on the cell."""
    page = notebook.page
    await page.get_by_role("radio", name="5 min", exact=True).focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("radio", name="15 min", exact=True)).to_be_checked()
    for key in ("d", "d", "a", "x"):
        await page.keyboard.press(key)
    await expect(page.locator(".jp-CodeCell")).to_have_count(1)
    chart = page.get_by_role("img", name="Memory of the machine")
    await chart.focus()
    await page.keyboard.press("End")
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator(".or-dashboard > .or-hidden[role=status]")).to_contain_text(re.compile(r"\d\d:\d\d:\d\d: in use"))


async def test_buttons_work_through_kernel_and_lost_runtime_is_reported(server: Server) -> None:
    """Use an embedded runtime, which the page cannot reach through its server."""
    show = "from openruntime_jupyter import Dashboard, connect\nclient = connect('embedded')\nDashboard(client)"
    submit = "handle = client.with_options(name='mine').submit_code('import time; time.sleep(600)')"
    new_notebook(server, "embedded.ipynb", show, submit)
    async with opened(server, "embedded.ipynb") as notebook:
        page = notebook.page
        await notebook.run_all()
        await live(page)
        row = rows(page, "mine")
        await expect(row).to_contain_text("running")
        await row.get_by_role("button", name="Cancel mine").click()
        await expect(row).to_contain_text("cancelled")
        await page.locator(".jp-CodeCell").nth(1).locator(".cm-content").fill("client.backend.stop()")
        await notebook.menu("Run", "Run Selected Cell")
        await expect(page.locator(".or-header")).to_contain_text("reconnecting")
        await expect(alert(page)).to_contain_text("from the runtime")
        # The kernel has nothing to send any more, which is not the kernel's fault.
        await page.evaluate("() => { const now = Date.now; Date.now = () => now() + 60_000; }")
        for _ in range(3):
            async with page.expect_response(lambda answer: "/api/status" in answer.url):
                pass
        await expect(page.locator(".or-header")).to_contain_text("reconnecting")
        await expect(alert(page)).to_contain_text("from the runtime")


async def test_empty_dashboard_explains_first_steps_and_long_queue_can_be_paged(tmp_path_factory: pytest.TempPathFactory) -> None:
    numbers = list(range(120))
    with running_server(Home(tmp_path_factory.mktemp("long")), LAB) as server:
        new_notebook(server, "long.ipynb", SHOW)
        async with opened(server, "long.ipynb") as notebook:
            page = notebook.page
            await notebook.run_all()
            await live(page)
            await expect(page.get_by_text("No tasks yet.")).to_be_visible()
            await expect(page.locator("table.or-tasks")).to_be_hidden()
            await expect(page.get_by_role("searchbox")).to_be_hidden()
            await expect(page.get_by_text("a prompt loads the model")).to_be_visible()
            server.submit("matrix_multiply", {"size": 8}, name="before")
            for _ in range(slots(server)):
                server.submit("python", {"code": "import time\ntime.sleep(600)"}, name="holds", wait=False)
            made = [server.submit("matrix_multiply", {"size": 8}, name=f"waits {number}", wait=False) for number in numbers]
            await expect(rows(page, "before")).to_contain_text("completed")
            pager = page.locator(".or-more")
            await expect(pager).to_contain_text("20 of 120 waiting, next to run first")
            await waits(page, numbers[:20])
            for shown in (70, 120):
                await pager.get_by_role("button", name="Show 50 more").click()
                await waits(page, numbers[:shown])
            await expect(pager).to_contain_text("all 120 waiting")
            await rows(page, "waits 90").get_by_role("button", name="Cancel waits 90").click()
            await waits(page, [number for number in numbers if number != 90])
            await expect(rows(page, "waits 90")).to_contain_text("cancelled")
            server.request("PATCH", f"/tasks/{made[110]['task_id']}", json={"priority": 10})
            await waits(page, [110, *(number for number in numbers if number not in (90, 110))])
            assert await page.evaluate(OVERFLOW) == []
            await pager.get_by_role("button", name="Show fewer").click()
            await waits(page, [110, *numbers[:19]])


async def test_tasks_are_searched_filtered_and_deleted(server: Server) -> None:
    cell = "%%openruntime --name 'Found Later'\nprint(6 * 7)"
    new_notebook(server, "search.ipynb", SHOW, cell)
    async with opened(server, "search.ipynb") as notebook:
        page = notebook.page
        await notebook.run_all()
        await expect(rows(page, "Found Later")).to_contain_text("completed")
        for number in range(25):
            server.submit("matrix_multiply", {"size": 8}, name=f"newer {number}")
        await expect(rows(page, "Found Later")).to_have_count(0)
        search = page.get_by_role("searchbox", name="Search tasks by name, code or parameters")
        await search.fill("found l")
        row = rows(page, "Found Later")
        await expect(row).to_contain_text("from search.ipynb")
        await expect(page.locator(".or-tasks .or-line")).to_have_count(1)
        await row.get_by_role("button", name="Details and output").click()
        await row.get_by_text("Code (2 lines)").click()
        await expect(row.get_by_label("Code", exact=True)).to_contain_text("print(6 * 7)")
        await search.fill("100%")
        await expect(page.get_by_text("No task matches")).to_be_visible()
        await search.fill("print(6 * 7)")
        await expect(rows(page, "Found Later")).to_be_visible()
        await search.fill("")
        await expect(rows(page, "newer 24")).to_be_visible()
        await page.get_by_label("Only tasks of this notebook").select_option(label="search.ipynb (this notebook)")
        await expect(rows(page, "Found Later")).to_be_visible()
        await expect(rows(page, "newer 24")).to_have_count(0)
        state = page.get_by_label("Only tasks in this state")
        await state.select_option(label="running and waiting")  # hides the finished ones
        await expect(page.get_by_text("No task matches")).to_be_visible()
        await state.select_option(label="failed")
        await expect(page.get_by_text("No task matches")).to_be_visible()
        await state.select_option(label="completed")
        row = rows(page, "Found Later")
        await row.get_by_role("button", name="Details and output").click()
        await row.get_by_role("button", name="Delete Found Later").click()
        await row.get_by_role("button", name="Delete Found Later").click()  # to confirm
        await expect(row).to_have_count(0)
        await until(lambda: not named(server, "Found Later", "completed"), "the task is deleted")
        assert await page.evaluate(OVERFLOW) == []


def slots(server: Server) -> int:
    return sum(device["slots"] for device in server.get("/devices")["devices"])


async def waits(page: Page, numbers: list[int]) -> None:
    """Wait until the page shows these waiting tasks in this order."""
    names = page.locator(".or-tasks .or-line[data-state=pending] strong")
    await expect(names).to_have_text([f"waits {number}" for number in numbers])
