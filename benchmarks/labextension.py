"""Cost of the front-end extension: load of JupyterLab's page with and without it, and the server's CPU use with the panel open and closed.

The page loads from two servers, of which one has the extension disabled, in turns. A page is loaded once its launcher is visible.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil
from playwright.async_api import Page

from benchmarks.rows import Row, added, at_most, median, require_chromium, within
from tests.browser import chromium
from tests.browser.lab import LAB
from tests.support import Home, Server, running_server

LOADS = 9
SECONDS = 20
"""Seconds of each measurement of the server."""
LOADED = ".jp-LauncherCard"
STATUS = ".jp-OpenRuntime-status:visible"
DISABLED = {"disabledExtensions": {"openruntime-jupyter": True}}


def home(folder: Path, page_config: Mapping[str, object]) -> Home:
    """Return a home with this page configuration of JupyterLab."""
    made = Home(folder)
    place = folder / "jupyter-config" / "labconfig"
    place.mkdir(parents=True)
    (place / "page_config.json").write_text(json.dumps(page_config))
    return made


async def load_seconds(page: Page, server: Server) -> float:
    """Load the page, and return the seconds until it is usable."""
    await page.goto(f"{server.root}/lab?reset&token={server.token}")
    await page.wait_for_selector(LOADED, timeout=120_000)
    return float(await page.evaluate("performance.now()")) / 1000


async def cpu_percent(page: Page, server: Server) -> tuple[float, int]:
    """Return the CPU use of the server process in percent of a core, and the number of requests of the page to the extension."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/openruntime/" in request.url else None)
    await page.wait_for_timeout(5_000)  # exclude what the page asks once
    requests.clear()
    process = psutil.Process(server.pid)
    before = sum(process.cpu_times()[:2])
    await page.wait_for_timeout(1_000 * SECONDS)
    return 100 * (sum(process.cpu_times()[:2]) - before) / SECONDS, len(requests)


def rows() -> list[Row]:
    """Return the rows of the page's load and of the server's CPU use."""
    require_chromium()
    loads: list[tuple[float, float]] = []
    used: dict[str, tuple[float, int]] = {}

    async def story(enabled: Server, disabled: Server) -> None:
        async with chromium.new_page(1280, 900) as page, chromium.new_page(1280, 900) as bare:
            for turn in range(LOADS + 1):
                pair = await load_seconds(page, enabled), await load_seconds(bare, disabled)
                if turn:  # the first one fills the cache
                    loads.append(pair)
            await page.wait_for_selector(STATUS)
            used["closed"] = await cpu_percent(page, enabled)
            await page.click(STATUS)
            await page.wait_for_selector(".or-dashboard .or-header")
            used["open"] = await cpu_percent(page, enabled)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with running_server(home(root / "with", {}), LAB) as enabled, running_server(home(root / "without", DISABLED), LAB) as disabled:
            chromium.run(story(enabled, disabled))
            chromium.close()
    ours, peer = (median([pair[place] for pair in loads]) for place in (0, 1))
    return [
        at_most("load of JupyterLab's page, with and without the extension", ours, peer, 1.1, "s"),
        added("server with the panel open, compared with the panel closed", used["open"][0], used["closed"][0], 2.0, "% of one core"),
        within(f"requests of a closed panel in {SECONDS} s", float(used["closed"][1]), 0, "requests"),
    ]
