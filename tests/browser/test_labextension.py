"""The extension of JupyterLab and Notebook 7: the queue without a cell."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from jupyter_server.auth.security import passwd
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.chromium import new_page, run
from tests.browser.lab import APPS, LAB, MILLISECONDS, App, new_notebook, opened, until
from tests.browser.test_quickstart import named
from tests.support import Home, Server, free_port, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

COUNT = """import time
from openruntime_jupyter import progress
for epoch in range(1000):
    progress(epoch, 1000, 'counting')
    print('epoch', epoch, flush=True)
    time.sleep(0.1)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(Home(tmp_path_factory.mktemp("labextension")), LAB, base_url="/user/ann%40x/") as running:
        yield running


def status_line(page: Page) -> Locator:
    return page.locator(".jp-OpenRuntime-status:visible")


def task(page: Page, name: str) -> Locator:
    """Locate the output of a task in its cell."""
    return page.locator(".jp-OpenRuntime-task").filter(has_text=name)


@pytest.mark.parametrize("app", APPS)
def test_page_shows_queue_and_cancels_without_kernel(server: Server, app: App) -> None:
    name = f"queue-{app}"
    new_notebook(server, f"{name}.ipynb", "import time; time.sleep(60)")

    async def story() -> None:
        async with opened(server, f"{name}.ipynb", app) as notebook:
            page = notebook.page
            await expect(status_line(page)).to_have_text(re.compile(r"^idle · .*memory \d+ %$"))
            await notebook.start_all()  # the kernel is busy
            server.submit("python", {"code": COUNT}, name=name, wait=False)
            await expect(status_line(page)).to_contain_text("1 running · 0 waiting")
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url) if "/openruntime/" in request.url else None)
            await page.wait_for_timeout(1000)
            assert len(requests) <= 2, "a hidden dashboard requests nothing"
            await status_line(page).click()
            row = page.locator(".or-tasks tbody").filter(has_text=name)
            await expect(row).to_contain_text("counting")
            await row.get_by_role("button", name=f"Cancel {name}").click()
            await until(lambda: bool(named(server, name, "cancelled")), "the task is cancelled, though the kernel is busy")
            await expect(row).to_contain_text("cancelled")
            await expect(status_line(page)).to_contain_text("idle")
            await notebook.menu("Kernel", "Interrupt Kernel")
            await notebook.done()

    run(story())


@pytest.mark.parametrize("app", APPS)
def test_saved_output_is_live_again_in_new_page(server: Server, app: App) -> None:
    name = f"saved-{app}"
    new_notebook(server, f"{name}.ipynb", "%load_ext openruntime_jupyter", f"%%openruntime --name {name}\n{COUNT}")

    async def story() -> None:
        async with opened(server, f"{name}.ipynb", app) as notebook:
            page = notebook.page
            await notebook.start_all()
            await expect(task(page, name)).to_contain_text("running")
            await expect(page.locator(".jp-OutputArea").nth(1)).to_contain_text("epoch 1")
            async with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
                await page.keyboard.press("Control+s")
            await notebook.restart()  # the task continues
            await page.reload()
            output = task(page, name)
            await expect(output).to_contain_text(re.compile(r"running · \d+ % · about"))
            shown = page.locator(".jp-OpenRuntime-task-output")
            await expect(shown).to_contain_text(re.compile(r"epoch \d{2,}"))
            await output.get_by_role("button", name="Cancel").click()
            await expect(output).to_contain_text("cancelled after")
            await expect(output.get_by_role("button", name="Retry")).to_be_visible()

    run(story())


def test_cell_runs_as_task_and_long_task_is_notified(server: Server) -> None:
    settings = server.home.path / "jupyter-config" / "lab" / "user-settings" / "openruntime-jupyter"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "plugin.jupyterlab-settings").write_text('{"notifyAfter": 0.2}')
    code = "import time\ntime.sleep(0.5)\ntotal = size * 2"
    new_notebook(server, "cells.ipynb", "size = 21", code, "print('total', total)")

    async def story() -> None:
        async with opened(server, "cells.ipynb") as notebook:
            page = notebook.page
            await page.locator(".jp-CodeCell").first.locator(".cm-content").click()
            await notebook.menu("Run", "Run Selected Cell")
            await notebook.done()
            cell = page.locator(".jp-CodeCell").nth(1)
            await cell.click(button="right")
            await page.click(".lm-Menu-itemLabel:text-is('Run Cell as OpenRuntime Task')")
            await expect(cell.locator(".cm-content")).to_contain_text("%%openruntime --in size --out total")
            await expect(task(page, "cells [")).to_contain_text("completed in")
            await expect(page.locator(".jp-toastContainer")).to_contain_text("completed after")
            await page.locator(".jp-CodeCell").nth(2).locator(".cm-content").click()
            await notebook.menu("Run", "Run Selected Cell")
            await expect(page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea")).to_contain_text("total 42")

    run(story())


def test_page_reports_lost_server_and_is_live_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    home, port = Home(tmp_path_factory.mktemp("restarted")), free_port()

    async def story() -> None:
        async with new_page(1280, 900) as page:
            with running_server(home, LAB, port=port) as first:
                await page.goto(f"{first.root}/lab?token={first.token}")
                await expect(status_line(page)).to_contain_text("idle")
            await expect(status_line(page)).to_have_text("OpenRuntime: no answer")
            with running_server(home, LAB, port=port) as second:
                second.submit("python", {"code": COUNT}, name="counted", wait=False)
                await expect(status_line(page)).to_contain_text("1 running")

    run(story())


def test_password_login_reads_and_writes_with_cookie(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a token, requests need the login's cookie and the XSRF token."""
    home = Home(tmp_path_factory.mktemp("password"))
    settings = {"PasswordIdentityProvider": {"hashed_password": passwd("secret", "sha1")}}

    async def story(running: Server) -> None:
        async with new_page(1280, 1600) as page:
            page.set_default_timeout(MILLISECONDS)
            await page.goto(f"{running.root}/login?next=/lab")
            await page.locator("input[name=password]").fill("secret")
            await page.locator("button[type=submit]").click()
            await expect(status_line(page)).to_contain_text("idle")
            await status_line(page).click()
            await page.get_by_text("Run an operation", exact=True).click()
            form = page.locator(".or-dashboard form")
            await form.get_by_label("Operation", exact=True).select_option("python")
            await form.get_by_label("code", exact=True).fill("import time; time.sleep(600)")
            await form.get_by_role("button", name="Run", exact=True).click()
            await expect(status_line(page)).to_contain_text("1 running")
            await page.get_by_role("button", name="Cancel python").click()
            await expect(page.locator(".or-tasks tbody").first).to_contain_text("cancelled")

    with running_server(home, LAB, token="", config=settings, healthy=False, ready=403) as running:
        run(story(running))


def test_page_without_server_extension_asks_once_and_shows_nothing(server: Server) -> None:
    async def story() -> None:
        async with new_page(1280, 900) as page:
            asked: list[str] = []

            async def refuse(route: Route) -> None:
                asked.append(route.request.url)
                await route.fulfill(status=404, body="Not Found")

            await page.route("**/openruntime/**", refuse)
            await page.goto(f"{server.root}/lab?token={server.token}")
            await page.wait_for_selector(".jp-Launcher", timeout=MILLISECONDS)
            await until(lambda: bool(asked), "the page asks")
            await page.wait_for_timeout(3000)
            assert len(asked) == 1
            await expect(page.locator(".jp-OpenRuntime-status:visible, #openruntime-panel, [data-id=openruntime-panel]")).to_have_count(0)
            await expect(page.locator(".jp-LauncherCard").filter(has_text="OpenRuntime")).to_have_count(0)

    run(story())
