"""Common helpers for browser tests of JupyterLab and Notebook 7 in headless Chromium."""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import nbformat
from playwright.async_api import ConsoleMessage, Page, expect
from playwright.async_api import TimeoutError as TookTooLong

from tests.browser.chromium import new_page
from tests.support import Server

LAB = (sys.executable, "-m", "jupyterlab")
IDLE = "() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null"
DONE = """() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null
    && ![...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"""
STARTED = r"() => /[*\d]/.test(document.querySelector('.jp-CodeCell .jp-InputPrompt')?.textContent ?? '')"
ERRORS = """() => ['stderr', 'error'].flatMap(kind =>
    [...document.querySelectorAll(`.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.${kind}"]`)]
).map(node => node.innerText.trim())"""
MILLISECONDS = 90_000
"""Timeout of any step on a slow machine."""
expect.set_options(timeout=MILLISECONDS)
OURS = re.compile("openruntime|or-dashboard|blob:", re.IGNORECASE)
"""Parts of URLs that identify our own errors. The dashboard's module is loaded from a blob."""

App = Literal["lab", "notebook7"]
APPS: tuple[App, ...] = ("lab", "notebook7")


def new_notebook(server: Server, name: str, *cells: str) -> None:
    """Write a notebook with these cells into the server's folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, server.home.path / name)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds."""
    deadline = asyncio.get_running_loop().time() + MILLISECONDS / 1000
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.1)


def recorded(page: Page) -> list[str]:
    """Return a list to which the errors of the page and its console are added, with their sources."""
    errors: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(f"{message.text} ({message.location.get('url', '')})")

    page.on("console", heard)
    page.on("pageerror", lambda problem: errors.append(f"{problem} {problem.stack or ''}"))
    return errors


@dataclass
class Notebook:
    """A notebook opened in JupyterLab or Notebook 7."""

    page: Page
    server: Server
    session: str
    """Id of the Jupyter session of the notebook and its kernel."""
    console: list[str] = field(default_factory=list)
    """Errors of the page and its console, with their sources."""
    expected: list[str] = field(default_factory=list)
    """Parts of expected errors."""

    def listen(self) -> None:
        """Record the errors of the page."""
        self.console = recorded(self.page)

    def ours(self) -> list[str]:
        """Return the unexpected errors of our own code."""
        return [line for line in self.console if OURS.search(line) and not any(part in line for part in self.expected)]

    async def idle(self) -> None:
        """Wait until the page is connected to the kernel and the kernel is idle.

        The page is not sufficient: it shows a starting kernel as idle, and loses cells that are run then.
        """
        await until(self._kernel_is_idle, "the kernel is idle")
        await self.page.wait_for_function(IDLE, timeout=MILLISECONDS)

    async def restart(self) -> None:
        """Restart the kernel, as Jupyter's menu does, and wait until it is idle."""
        restart = f"{self.server.root}/api/kernels/{self._kernel()['id']}/restart"
        self.server.client.post(restart, headers=self.server.headers, timeout=60).raise_for_status()
        await self.idle()

    def _kernel(self) -> dict[str, Any]:
        answer = self.server.client.get(f"{self.server.root}/api/sessions/{self.session}", headers=self.server.headers, timeout=60)
        kernel: dict[str, Any] = answer.raise_for_status().json()["kernel"]
        return kernel

    def _kernel_is_idle(self) -> bool:
        kernel = self._kernel()
        return bool(kernel["connections"] and kernel["execution_state"] == "idle")

    async def menu(self, *labels: str) -> None:
        """Choose an entry of the main menu by its labels."""
        await self.page.click(f".lm-MenuBar-itemLabel:text-is('{labels[0]}')")
        for label in labels[1:]:
            await self.page.click(f".lm-Menu-itemLabel:text-is('{label}')")

    async def done(self) -> None:
        """Wait until all running cells have finished."""
        await self.page.wait_for_timeout(500)
        await self.page.wait_for_function(DONE, timeout=3 * MILLISECONDS)

    async def start_all(self, command: str = "Run All Cells") -> None:
        """Run cells by a command of the Run menu, and return when the first one has started."""
        for seconds in (10, 20, 40, 80):
            try:
                await self.menu("Run", command)
                await self.page.wait_for_function(STARTED, timeout=1000 * seconds)
                return
            except TookTooLong:  # Lab loses the command while it connects to the kernel, and clears the prompts
                continue
        raise AssertionError("the page did not run the cells")

    async def run_all(self) -> None:
        """Run all cells and wait for them."""
        await self.start_all()
        await self.done()

    async def text(self, cell: int) -> str:
        """Return the output of a code cell, counted from 0."""
        return await self.page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea").inner_text()

    async def errors(self) -> list[str]:
        """Return all error and stderr outputs."""
        return list(await self.page.evaluate(ERRORS))


@asynccontextmanager
async def opened(server: Server, name: str, app: App = "lab") -> AsyncIterator[Notebook]:
    """Open a notebook in a new Lab workspace or in Notebook 7, and stop its kernel at the end.

    Fails on errors of our own code in the page or its console. Saves a screenshot if the test fails.
    """
    # On a slow machine, a page that starts the kernel itself also asks which kernel to start.
    wanted = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
    sessions = f"{server.root}/api/sessions"
    made = server.client.post(sessions, headers=server.headers, json=wanted, timeout=MILLISECONDS / 1000).raise_for_status().json()
    try:
        async with new_page(1280, 1600) as page:
            page.set_default_timeout(MILLISECONDS)
            notebook = Notebook(page, server, made["id"])
            notebook.listen()
            try:
                place = f"lab/workspaces/{uuid.uuid4().hex[:8]}/tree" if app == "lab" else "notebooks"
                await page.goto(f"{server.root}/{place}/{name}?token={server.token}")
                await page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=MILLISECONDS)
                await notebook.idle()
                yield notebook
                assert notebook.ours() == [], notebook.ours()
            except BaseException:
                await page.screenshot(path=server.home.path / f"{name}.png")
                raise
    finally:  # unless it was shut down in the page
        server.client.delete(f"{sessions}/{made['id']}", headers=server.headers, timeout=MILLISECONDS / 1000)
