"""The extension of JupyterLab and Notebook 7: the queue without a cell."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from jupyter_server.auth.security import passwd
from playwright.async_api import Locator, Page, Route, expect

from tests.ai.provider_server import Connection, ProviderServer, Request, providing, usage
from tests.browser.chromium import new_page, run
from tests.browser.lab import APPS, LAB, MILLISECONDS, OURS, App, Notebook, new_notebook, opened, recorded, until
from tests.browser.test_quickstart import named, select
from tests.support import Home, Server, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LOAD = "%load_ext openruntime_jupyter"
SLEEP = "import time; time.sleep(600)"
COUNT = """import time
from openruntime_jupyter import progress
newest = display('no epoch', display_id=True)
for epoch in range(1000):
    progress(epoch, 1000, 'counting')
    print('epoch', epoch, flush=True)
    newest.update(f'newest: {epoch}')
    time.sleep(0.1)"""
EVIL = """<img src=x.png onerror="document.title='run'"> ![p](x.png) <b style="background:url(x.png)">bold</b>"""
FAILED_REQUEST = "Failed to load resource"
"""The browser's own message about a request that fails, as some tests intend."""

go_on = threading.Event()
"""Event that releases the second half of the provider's answer."""


def answer(connection: Connection, request: Request) -> None:
    connection.begin()
    connection.text("The **first** part.\n\n", finish=None)
    assert go_on.wait(200)
    connection.text(f"The **second** part. {EVIL}")
    connection.event(usage(10, 5))
    connection.event("[DONE]")


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(answer) as running:
        yield running
        go_on.set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, provider: ProviderServer) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("labextension"))
    settings: dict[str, Any] = {
        "openruntime-jupyter/plugin": {"notifyAfter": 0.2},
        # The command is among the items of the notebook's toolbar, and off by default.
        "@jupyterlab/notebook-extension/panel": {"toolbar": [{"name": "openruntime-run", "disabled": False}]},
    }
    for plugin, values in settings.items():
        file = home.path / "jupyter-config" / "lab" / "user-settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    told = {"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}
    slots = {"OpenRuntimeApp": {"cpu_slots": 4}}
    with running_server(home, LAB, environment=told, config=slots, base_url="/user/ann%40x/") as running:
        yield running


@asynccontextmanager
async def checked_page() -> AsyncIterator[Page]:
    """Open a page that must have no error of our own code, but for requests that fail."""
    async with new_page(1280, 900) as page:
        page.set_default_timeout(MILLISECONDS)
        errors = recorded(page)
        yield page
        ours = [line for line in errors if OURS.search(line) and FAILED_REQUEST not in line and "WebSocket connection" not in line]
        assert ours == []


def status_line(page: Page) -> Locator:
    return page.locator(".jp-OpenRuntime-status:visible")


def row_of(page: Page, name: str) -> Locator:
    """Locate the row of a task in the dashboard."""
    return page.locator(".or-tasks tbody").filter(has_text=name)


def task(page: Page, name: str) -> Locator:
    """Locate the output of a task in its cell."""
    return page.locator(".jp-OpenRuntime-task").filter(has_text=name)


def requests_of(page: Page) -> list[str]:
    """Return a list to which the requests to our API are added, without those of the status line, and of the title for a new task."""
    asked: list[str] = []

    def add(url: str) -> None:
        if "/openruntime/" in url and not url.endswith(("/metrics", "/tasks?state=running&limit=100")):
            asked.append(url)

    page.on("request", lambda request: add(request.url))
    return asked


async def run_cell(notebook: Notebook, cell: int) -> None:
    await select(notebook, cell)
    await notebook.menu("Run", "Run Selected Cell")


async def shows_details(page: Page, name: str) -> None:
    """Wait until the dashboard shows a task with its details."""
    row = row_of(page, name)
    await expect(row.get_by_role("button", name="output of", exact=False)).to_have_attribute("aria-expanded", "true")
    await expect(row).to_be_in_viewport()


@pytest.mark.parametrize("app", APPS)
def test_page_shows_queue_and_cancels_without_kernel(server: Server, app: App) -> None:
    name = f"queue-{app}"
    new_notebook(server, f"{name}.ipynb", SLEEP)

    async def story() -> None:
        async with opened(server, f"{name}.ipynb", app) as notebook:
            page = notebook.page
            await expect(status_line(page)).to_have_text(re.compile(r"^idle · .*memory \d+ %$"))
            await notebook.start_all()  # the kernel is busy
            requests = requests_of(page)
            server.submit("python", {"code": COUNT}, name=name, wait=False)
            await expect(status_line(page)).to_contain_text("1 running · 0 waiting")
            await page.wait_for_timeout(1200)
            assert requests == [], "a hidden dashboard requests nothing"
            row = row_of(page, name)
            if app == "lab":  # which saves its layout some time after a change
                async with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/workspaces/" in answer.url):
                    await status_line(page).click()
                    await expect(row).to_contain_text("counting")
                await page.reload()
            else:
                await status_line(page).click()
            await expect(row).to_contain_text("counting")
            await row.get_by_role("button", name=f"Cancel {name}").click()
            await until(lambda: bool(named(server, name, "cancelled")), "the task is cancelled, though the kernel is busy")
            await expect(row).to_contain_text("cancelled")
            await expect(status_line(page)).to_contain_text("idle")
            await status_line(page).click()
            await expect(row).to_have_count(0)
            await notebook.menu("Kernel", "Interrupt Kernel")
            await notebook.done()

    run(story())


@pytest.mark.parametrize("app", APPS)
def test_saved_outputs_are_live_again_in_new_page(server: Server, app: App) -> None:
    """A cell, a card and a prompt: after a kernel restart and a closed tab, and while the kernel is busy."""
    name, card, background, prompt = (f"{kind}-{app}" for kind in ("saved", "card", "background", "prompt"))
    cards = [f"%%openruntime --bg --name {card}\n{SLEEP}", f"%%openruntime ai --bg --name {background}\nhi"]
    cells = [*cards, f"%%openruntime --name {name}\n{COUNT}", f"%%openruntime ai --name {prompt}\nhi"]
    new_notebook(server, f"{name}.ipynb", LOAD, *cells, SLEEP)
    go_on.clear()

    async def story() -> None:
        async with opened(server, f"{name}.ipynb", app) as notebook:
            page = notebook.page
            await select(notebook, 4)
            await notebook.start_all("Run All Above Selected Cell")
            await expect(page.locator(".jp-OutputArea").nth(3)).to_contain_text("epoch 1")
            if app == "lab":  # a changed label would rename the file
                tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab")
                await expect(tab).to_have_attribute("data-openruntime", re.compile(r"^\d+ % $"))
            else:
                await expect(page).to_have_title(re.compile(rf"^\d+ % {name}$"))
            await notebook.restart()  # the tasks continue
            await run_cell(notebook, 0)
            await run_cell(notebook, 4)
            await expect(task(page, prompt).locator("strong")).to_have_text("first")
            async with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
                await page.keyboard.press("Control+s")
            await notebook.restart()
            address = page.url
            await page.goto("about:blank")
            await page.goto(address)
            await notebook.idle()
            await expect(task(page, card)).to_contain_text(re.compile(r"running · \d+"))
            await expect(task(page, name)).to_contain_text(re.compile(r"running · \d+% \(\d+ of 1,000\) · about"))
            await expect(page.locator(".jp-OpenRuntime-task-output")).to_contain_text(re.compile(r"epoch \d{2,}"))
            await expect(page.locator(".jp-OpenRuntime-task-output")).to_contain_text(re.compile(r"newest: \d{2,}"))
            assert [file.name for file in server.home.path.glob(f"*{name}*.ipynb")] == [f"{name}.ipynb"]
            await run_cell(notebook, 5)  # the kernel is busy
            await cancel_and_retry(page, card)
            await prompt_is_completed(notebook, prompt)
            await task(page, name).get_by_role("button", name="Cancel").click()
            await expect(task(page, name)).to_contain_text("cancelled after")
            await until(lambda: bool(named(server, name, "cancelled")), "the task is cancelled, though the kernel is busy")
            for _ in range(21):  # more than the dashboard lists
                server.submit("python", {"code": "pass"})
            await task(page, name).get_by_role("button", name="Open").click()
            await shows_details(page, name)
            await notebook.menu("Kernel", "Interrupt Kernel")
            await notebook.done()

    run(story())


async def cancel_and_retry(page: Page, name: str) -> None:
    """Cancel a task by its output, run it again while a request for the cancelled one is unanswered, and cancel it."""
    asked, answered, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        asked.set()
        await release.wait()
        await route.fulfill(response=await route.fetch())
        answered.set()

    await page.route(re.compile(r"/tasks/\w+\?parameters=false$"), late, times=1)
    for label, state in (("Cancel", "cancelled after"), ("Retry", "running"), ("Cancel", "cancelled after")):
        await task(page, name).get_by_role("button", name=label).click()
        await expect(task(page, name)).to_contain_text(state)
        if label == "Cancel":
            await asyncio.wait_for(asked.wait(), 60)
        else:
            release.set()
            await asyncio.wait_for(answered.wait(), 60)


async def prompt_is_completed(notebook: Notebook, name: str) -> None:
    """Release the second half of the answer, which must be rendered as Markdown without anything that is loaded or run."""
    page, output = notebook.page, task(notebook.page, name)
    await expect(output.locator("strong")).to_have_text("first")
    await expect(output).to_contain_text("running")
    go_on.set()
    await expect(output.locator("strong")).to_have_text(["first", "second"])
    await expect(output).to_contain_text(re.compile(r"completed in .* · 5 tokens"))
    await expect(task(page, name.replace("prompt", "background")).locator("strong")).to_have_text(["first", "second"])
    assert await output.locator(".jp-RenderedMarkdown :is(img[src], [style])").count() == 0
    assert await page.title() != "run"
    assert [line for line in notebook.console if "x.png" in line] == [], "no image was requested"


def test_cell_runs_as_task_and_long_tasks_are_notified(server: Server) -> None:
    code = "import time\ntime.sleep(0.5)\ntotal = size * 2"
    new_notebook(server, "cells.ipynb", "size = 21", code, "print('total', total)")

    async def story() -> None:
        async with opened(server, "cells.ipynb") as notebook:
            page = notebook.page
            await run_cell(notebook, 0)
            await notebook.done()
            await expect(page.locator(".jp-NotebookPanel-toolbar [data-command='openruntime:run-cell-as-task']")).to_be_visible()
            cell = page.locator(".jp-CodeCell").nth(1)
            await cell.click(button="right")
            await page.click(".lm-Menu-itemLabel:text-is('Run Cell as OpenRuntime Task')")
            await expect(cell.locator(".cm-content")).to_contain_text("%%openruntime --in size --out total")
            await expect(task(page, "cells [")).to_contain_text("completed in")
            toast = page.locator(".Toastify__toast")
            await expect(toast.filter(has_text="completed after")).to_have_class(re.compile("success"))
            await run_cell(notebook, 2)
            await expect(page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea")).to_contain_text("total 42")
            await page.evaluate(HIDDEN)
            end = server.home.path / "end"
            wait = f"import os, time\nwhile not os.path.exists({str(end)!r}): time.sleep(0.02)"
            server.submit("python", {"code": wait}, name="good", wait=False)
            await until(lambda: bool(named(server, "good", "running")), "the task runs")
            server.submit("python", {"code": "import time; time.sleep(0.3); 1 / 0"}, name="bad", wait=False)
            await until(lambda: bool(named(server, "bad", "failed")), "the task fails")
            end.touch()
            both = toast.filter(has_text=re.compile("2 tasks finished, 1 failed: (good, bad|bad, good)"))
            await expect(both).to_have_class(re.compile("error"))
            notices = await page.evaluate("window.notices.map(notice => notice.body)")
            assert notices == [await both.locator(".jp-toast-message").inner_text()]
            await both.get_by_role("button", name="Show").click()
            await shows_details(page, "bad")

    run(story())


HIDDEN = """() => {
    window.notices = [];
    window.Notification = class { static permission = 'granted'; constructor(title, options) { window.notices.push(options); } };
    Object.defineProperty(document, 'hidden', { value: true });
}"""
"""Make the page look hidden, with the permission for desktop notices, which headless browsers do not show."""


def test_running_panel_and_tab_cancel_tasks(server: Server) -> None:
    async def story() -> None:
        async with checked_page() as page:
            await page.goto(f"{server.root}/lab/workspaces/running?token={server.token}")
            async with page.expect_response(lambda answer: "openruntime-dashboard:dashboard" in (answer.request.post_data or "")):
                await page.locator(".jp-LauncherCard").filter(has_text="OpenRuntime Dashboard").click()
            for number in range(3):
                server.submit("python", {"code": SLEEP}, name=f"endless {number}", wait=False)
            await expect(row_of(page, "endless")).to_have_count(3)
            await page.reload()
            await expect(row_of(page, "endless 2")).to_have_count(1)
            await page.locator(".jp-SideBar [data-id='jp-running-sessions']").click()
            section = page.locator(".jp-RunningSessions-section").filter(has_text="endless")
            items = section.locator(".jp-RunningSessions-item").filter(has_text="endless")
            await expect(items).to_have_count(3)
            item = items.filter(has_text="endless 1")
            await item.hover()
            await item.get_by_title("Cancel").click()
            await expect(row_of(page, "endless 1")).to_contain_text("cancelled")
            await expect(items).to_have_count(2)
            await page.locator(".jp-RunningSessions").get_by_role("button", name="Cancel All").click()
            await page.locator(".jp-Dialog").get_by_role("button", name="Cancel All").click()
            await until(lambda: all(named(server, f"endless {number}", "cancelled") for number in range(3)), "all are cancelled")
            await expect(status_line(page)).to_contain_text("idle")

    run(story())


def test_page_reports_lost_server_and_is_live_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    home, port = Home(tmp_path_factory.mktemp("restarted")), free_port()

    async def story() -> None:
        async with checked_page() as page:
            with running_server(home, LAB, port=port) as first:
                await page.goto(f"{first.root}/lab?token={first.token}")
                await expect(status_line(page)).to_contain_text("idle")
            await expect(status_line(page)).to_have_text("OpenRuntime: no answer")
            with running_server(home, LAB, port=port) as second:
                second.submit("python", {"code": COUNT}, name="counted", wait=False)
                await expect(status_line(page)).to_contain_text("1 running")

    run(story())


def test_password_login_reads_and_writes_with_cookie(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a token, requests need the login's cookie and the XSRF token. The page reports a lost login."""
    home = Home(tmp_path_factory.mktemp("password"))
    settings = {"PasswordIdentityProvider": {"hashed_password": passwd("secret", "sha1")}}

    async def story(running: Server) -> None:
        async with checked_page() as page:
            await page.goto(f"{running.root}/login?next=/lab")
            await page.locator("input[name=password]").fill("secret")
            await page.locator("button[type=submit]").click()
            await expect(status_line(page)).to_contain_text("idle")
            await status_line(page).click()
            await page.get_by_text("Run an operation", exact=True).click()
            form = page.locator(".or-dashboard form")
            await form.get_by_label("Operation", exact=True).select_option("python")
            await form.get_by_label("code", exact=True).fill(SLEEP)
            await form.get_by_role("button", name="Run", exact=True).click()
            await expect(status_line(page)).to_contain_text("1 running")
            await page.get_by_role("button", name="Cancel python").click()
            await expect(page.locator(".or-tasks tbody").first).to_contain_text("cancelled")
            login = await page.context.cookies()
            await page.context.clear_cookies()
            await expect(status_line(page)).to_have_text("OpenRuntime: no access")
            await expect(page.locator(".or-banner").first).to_contain_text("You are not logged in")
            await page.context.add_cookies(login)  # type: ignore[arg-type]
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            await expect(status_line(page)).to_contain_text("idle")

    with running_server(home, LAB, token="", config=settings, healthy=False, ready=403) as running:
        run(story(running))


def test_page_without_server_extension_asks_once_and_shows_nothing(server: Server) -> None:
    async def story() -> None:
        async with checked_page() as page:
            asked: list[str] = []

            async def refuse(route: Route) -> None:
                asked.append(route.request.url)
                await route.fulfill(status=404, body="Not Found")

            await page.route("**/openruntime/**", refuse)
            await page.goto(f"{server.root}/lab?token={server.token}")
            await page.wait_for_selector(".jp-Launcher", timeout=MILLISECONDS)
            await until(lambda: bool(asked), "the page asks")
            await asyncio.sleep(2)
            assert len(asked) == 1
            await expect(page.locator(".jp-OpenRuntime-status:visible, #openruntime-panel, [data-id=openruntime-panel]")).to_have_count(0)
            await expect(page.locator(".jp-LauncherCard").filter(has_text="OpenRuntime")).to_have_count(0)

    run(story())
