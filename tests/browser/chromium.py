"""One headless Chromium for all tests of a process, since starting one takes as long as a test."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, Playwright, async_playwright

FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


class _Chromium:
    """Browser, started on first use."""

    def __init__(self) -> None:
        self.playwright: Playwright | None = None
        self.browser: Browser | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """Loop of the browser alone: tests of other folders close the current loop."""

    async def started(self) -> Browser:
        if self.playwright is None:
            self.playwright = await async_playwright().start()
        if self.browser is None or not self.browser.is_connected():  # a page may have crashed it
            flags = [*FLAGS, "--no-sandbox"] if os.getuid() == 0 else FLAGS
            self.browser = await self.playwright.chromium.launch(executable_path=executable(), args=flags)
        return self.browser

    async def stop(self) -> None:
        if self.browser is not None:
            await self.browser.close()
        if self.playwright is not None:
            await self.playwright.stop()
        self.browser = self.playwright = None


_CHROMIUM = _Chromium()


def executable() -> str:
    """Return the path of the browser: the one found or installed by `make test`, else Debian's."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "there is no Chromium: `make test` installs one, CHROMIUM=/path/to/chromium names one"
    return found


def loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of the browser."""
    if _CHROMIUM.loop is None:
        _CHROMIUM.loop = asyncio.new_event_loop()
    return _CHROMIUM.loop


def run(story: Coroutine[object, object, None]) -> None:
    """Run a coroutine on the event loop of the browser."""
    loop().run_until_complete(story)


def close() -> None:
    """Close the browser and its event loop."""
    run(_CHROMIUM.stop())
    loop().close()
    _CHROMIUM.loop = None


@asynccontextmanager
async def new_page(width: int, height: int) -> AsyncIterator[Page]:
    """Open a page with its own login, storage and cache."""
    browser = await _CHROMIUM.started()
    context = await browser.new_context(viewport={"width": width, "height": height})
    try:
        yield await context.new_page()
    finally:
        await context.close()
