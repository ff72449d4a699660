"""The API page in a real browser: content security policy, no external requests, keyboard operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, expect

from tests.browser.chromium import new_page, run
from tests.support import JUPYTER, Server, running_server

pytestmark = [pytest.mark.browser]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("docs"), JUPYTER, base_url="/user/x/") as running:
        yield running


@asynccontextmanager
async def docs(server: Server, anchor: str = "") -> AsyncIterator[Page]:
    """Open the page, and check for errors and external requests at the end."""
    asked: list[str] = []
    wrong: list[str] = []
    async with new_page(1280, 900) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda problem: wrong.append(str(problem)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        await page.goto(f"{server.url}/docs?token={server.token}{anchor}")
        yield page
    assert [url.partition("?")[0] for url in asked] == [f"{server.url}/docs"]
    assert not wrong


def test_a_keyboard_opens_a_route_and_copies_its_example(server: Server) -> None:
    async def body() -> None:
        async with docs(server) as page:
            route = page.locator("#get_health")
            await expect(route.locator(".inside")).to_be_hidden()
            await route.locator("summary").first.focus()
            await page.keyboard.press("Enter")
            await expect(route.locator(".inside")).to_be_visible()
            await route.get_by_role("button", name="Copy Ask with curl").focus()
            await page.keyboard.press("Enter")
            await expect(page.locator("#said")).to_have_text("Copied")

    run(body())


def test_link_opens_its_target(server: Server) -> None:
    async def body() -> None:
        async with docs(server, anchor="#post_tasks") as page:
            route = page.locator("#post_tasks")
            await expect(route.locator(".inside").first).to_be_visible()
            await route.get_by_role("link", name="TaskRequest").first.click()
            await expect(page.locator("#type-TaskRequest .inside")).to_be_visible()
            await expect(page.locator("#type-TaskRequest summary")).to_be_focused()

    run(body())


def test_filter_keeps_matches(server: Server) -> None:
    async def body() -> None:
        async with docs(server) as page:
            await page.get_by_label("Filter").fill("batch/results")
            await expect(page.locator("details.route:visible h3").first).to_contain_text("/tasks/batch/results")
            await expect(page.locator("#get_health")).to_be_hidden()
            await expect(page.locator("nav li:visible")).to_have_count(1)
            await page.get_by_label("Filter").fill("")
            await expect(page.locator("#get_health")).to_be_visible()

    run(body())


def test_page_fits_the_window(server: Server) -> None:
    async def body() -> None:
        async with docs(server) as page:
            await page.get_by_role("button", name="Open all").click()
            for width in (1280, 480, 320):
                await page.set_viewport_size({"width": width, "height": 900})
                await expect(page.locator("#contents > ul").first).to_be_visible(visible=width >= 1000)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width

    run(body())
