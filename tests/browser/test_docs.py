"""The API page in a real browser: Swagger UI, content security policy, no requests to other hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.chromium import new_page
from tests.support import JUPYTER, STANDALONE, Home, Server, running_server

pytestmark = [pytest.mark.browser]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("docs"), JUPYTER, base_url="/user/x/") as running:
        yield running


async def response(page: Page, verb: str, path: str) -> Locator:
    """Try an operation on the page, and return its response."""
    block = page.locator(f".opblock-{verb}", has=page.locator(f'[data-path="{path}"]'))
    await block.locator("button").first.click()
    await block.get_by_role("button", name="Try it out").click()
    await block.get_by_role("button", name="Execute").click()
    return block.locator(".live-responses-table")


@asynccontextmanager
async def docs(server: Server, address: str) -> AsyncIterator[Page]:
    """Open the page, and check for errors and requests to other hosts at the end."""
    requested: list[str] = []
    errors: list[str] = []
    async with new_page(1280, 900) as page:
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda problem: errors.append(str(problem)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        await page.goto(address)
        await expect(page.locator(".opblock").first).to_be_visible(timeout=60_000)
        yield page
    assert [url for url in requested if not url.startswith((server.url, "data:"))] == []
    assert errors == []


async def test_operation_can_be_tried_under_jupyter(server: Server) -> None:
    async with docs(server, f"{server.url}/docs?token={server.token}") as page:
        shown = await response(page, "post", "/tasks")
        await expect(shown.locator(".response-col_status").last).to_contain_text("200", timeout=60_000)
        await expect(shown).to_contain_text('"status": "completed"')


async def test_operation_can_be_tried_without_login(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_server(Home(tmp_path_factory.mktemp("standalone")), STANDALONE) as server:
        async with docs(server, f"{server.url}/docs") as page:
            await expect(await response(page, "get", "/health")).to_contain_text('"devices"', timeout=60_000)
