"""JupyterLab and Notebook 7 in a real, headless Chromium: what the browser tests have in common."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from playwright.async_api import ConsoleMessage, Page, async_playwright, expect
from playwright.async_api import TimeoutError as TookTooLong

from tests.support import Server

LAB = (sys.executable, "-m", "jupyterlab")
FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
IDLE = "() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null"
DONE = """() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null
    && ![...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"""
STARTED = r"() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(prompt => /[*\d]/.test(prompt.textContent))"
ERRORS = """() => ['stderr', 'error'].flatMap(kind =>
    [...document.querySelectorAll(`.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.${kind}"]`)]
).map(node => node.innerText.trim())"""
MILLISECONDS = 120_000
"""That anything may take on a slow machine."""
expect.set_options(timeout=MILLISECONDS)
OURS = re.compile("openruntime|or-dashboard|blob:", re.IGNORECASE)
"""What says that an error of the page is ours: our addresses, and the dashboard's module, which is loaded from a blob."""

App = Literal["lab", "notebook7"]
APPS: tuple[App, ...] = ("lab", "notebook7")


def chromium() -> str:
    """The browser: what `make test` found or installed, else Debian's."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "there is no Chromium: `make test` installs one, CHROMIUM=/path/to/chromium names one"
    return found


@dataclass
class Notebook:
    """A notebook that is open in JupyterLab or Notebook 7."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Errors of the page and its console, with where they come from."""
    expected: list[str] = field(default_factory=list)
    """Parts of errors that a test provokes."""

    def listen(self) -> None:
        """Remember what the page complains about."""

        def heard(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.console.append(f"{message.text} ({message.location.get('url', '')})")

        self.page.on("console", heard)
        self.page.on("pageerror", lambda problem: self.console.append(f"{problem} {problem.stack or ''}"))

    def ours(self) -> list[str]:
        """The errors of the page that are ours, and that no test has provoked."""
        return [line for line in self.console if OURS.search(line) and not any(part in line for part in self.expected)]

    async def idle(self) -> None:
        """Wait until the kernel is there and idle."""
        await self.page.wait_for_function(IDLE, timeout=MILLISECONDS)
        # Lab loses a Run All that comes right with the first idle.
        await self.page.wait_for_timeout(1000)

    async def menu(self, *labels: str) -> None:
        """Choose an entry of the main menu by its labels."""
        await self.page.click(f".lm-MenuBar-itemLabel:text-is('{labels[0]}')")
        for label in labels[1:]:
            await self.page.click(f".lm-Menu-itemLabel:text-is('{label}')")

    async def done(self) -> None:
        """Wait until every cell that was started has ended."""
        await self.page.wait_for_timeout(500)
        await self.page.wait_for_function(DONE, timeout=2 * MILLISECONDS)

    async def start_all(self) -> None:
        """Run every cell; returns once the first one runs or has run."""
        for seconds in (10, 20, 40, 80):
            try:
                await self.menu("Run", "Run All Cells")
                await self.page.wait_for_function(STARTED, timeout=1000 * seconds)
                return
            except TookTooLong:  # Lab loses one that comes while the connection to the kernel is made, and empties the prompts
                continue
        raise AssertionError("the page did not run the cells")

    async def run_all(self) -> None:
        """Run every cell, to the end."""
        await self.start_all()
        await self.done()

    async def text(self, cell: int) -> str:
        """What a code cell shows, counted from 0."""
        return await self.page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea").inner_text()

    async def errors(self) -> list[str]:
        """Everything that stands in an error or stderr output."""
        return list(await self.page.evaluate(ERRORS))


@asynccontextmanager
async def opened(server: Server, name: str, app: App = "lab") -> AsyncIterator[Notebook]:
    """A notebook of the server's folder, in Lab in a workspace of its own.

    At its end there was no error of ours in the page or its console. A picture is left beside it if the test fails.
    """
    flags = [*FLAGS, "--no-sandbox"] if os.getuid() == 0 else FLAGS
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=flags)
        page = await browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(MILLISECONDS)
        notebook = Notebook(page)
        notebook.listen()
        # On a slow machine Lab asks for the kernel though it is starting one: whatever is clicked next waits for the answer.
        asks = page.locator(".jp-Dialog", has_text="Select Kernel")

        async def choose(_: object) -> None:
            with contextlib.suppress(TookTooLong):  # it goes away by itself once the kernel is there
                await asks.locator("button.jp-mod-accept").click(timeout=5_000)

        await page.add_locator_handler(asks, choose)
        try:
            place = f"lab/workspaces/{uuid.uuid4().hex[:8]}/tree" if app == "lab" else "notebooks"
            await page.goto(f"{server.root}/{place}/{name}?token={server.token}")
            await page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=MILLISECONDS)
            await notebook.idle()
            yield notebook
            assert notebook.ours() == []
        except BaseException:
            await page.screenshot(path=server.home.path / f"{name}.png")
            raise
        finally:
            await browser.close()
