"""The API page in a real browser: Swagger UI, content security policy, no requests to other hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, expect

from tests.browser.chromium import new_page, run
from tests.support import JUPYTER, STANDALONE, Home, Server, running_server

pytestmark = [pytest.mark.browser]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("docs"), JUPYTER, base_url="/user/x/") as running:
        yield running


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


def test_operation_can_be_tried_under_jupyter(server: Server) -> None:
    async def body() -> None:
        async with docs(server, f"{server.url}/docs?token={server.token}") as page:
            block = page.locator(".opblock-post", has=page.locator('[data-path="/tasks"]'))
            await block.locator("button").first.click()
            await block.get_by_role("button", name="Try it out").click()
            await block.get_by_role("button", name="Execute").click()
            status = block.locator(".live-responses-table .response-col_status").last
            await expect(status).to_contain_text("200", timeout=60_000)
            await expect(block.locator(".live-responses-table")).to_contain_text('"status": "completed"')

    run(body())


def test_operation_can_be_tried_without_login(tmp_path_factory: pytest.TempPathFactory) -> None:
    async def body(server: Server) -> None:
        async with docs(server, f"{server.url}/docs") as page:
            block = page.locator(".opblock-get", has=page.locator('[data-path="/health"]'))
            await block.locator("button").first.click()
            await block.get_by_role("button", name="Try it out").click()
            await block.get_by_role("button", name="Execute").click()
            await expect(block.locator(".live-responses-table")).to_contain_text('"devices"', timeout=60_000)

    with running_server(Home(tmp_path_factory.mktemp("standalone")), STANDALONE) as server:
        run(body(server))
