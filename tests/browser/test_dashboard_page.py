"""The dashboard on a separate page, without Jupyter."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.chromium import new_page, run
from tests.browser.test_dashboard import OVERFLOW, settled
from tests.gguf_twin import write_twin
from tests.support import JUPYTER, STANDALONE, Server, running_server
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CONNECTION = re.compile("ERR_CONNECTION|WebSocket")
CODE = "import time\nfor second in range(600): print(second, flush=True); time.sleep(1)"


@pytest.mark.parametrize("command", [STANDALONE, JUPYTER], ids=["standalone", "jupyter"])
def test_page_shows_tasks_and_cancels_them(command: tuple[str, ...], tmp_path: Path) -> None:
    async def story(server: Server) -> None:
        errors: list[str] = []
        async with new_page(1280, 900) as page:
            page.on("pageerror", lambda problem: errors.append(str(problem)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            await page.goto(f"{server.url}/dashboard?token={server.token}")
            await expect(page.locator(".or-header")).to_contain_text("healthy", timeout=60_000)
            task = server.submit("python", {"code": CODE}, name="counter", wait=False)
            row = page.locator(".or-tasks tbody").filter(has_text="counter")
            await expect(row).to_contain_text("running", timeout=60_000)
            await expect(page).to_have_title("1 task · OpenRuntime")
            await row.get_by_role("button", name="Details and output").click()
            await expect(row.get_by_label("Output", exact=True)).to_contain_text(re.compile(r"\d"), timeout=60_000)
            await expect(row.locator("td.or-memory")).to_contain_text("MB")
            await expect(row.locator(".or-facts > div", has_text="worker's memory")).to_contain_text("MB")
            await fits_side_panels(page)
            await row.get_by_role("button", name="Cancel counter").click()
            await expect(row).to_contain_text("cancelled", timeout=60_000)
            assert server.finished(task["task_id"])["status"] == "cancelled"
            if command == STANDALONE:
                await shows_loaded_model(page, server)
                await shows_time_of_old_data(page, server)
                errors[:] = [error for error in errors if not CONNECTION.search(error)]
        assert errors == []

    base = "/" if command == STANDALONE else "/user/ann/"
    (tmp_path / "models").mkdir()
    write_twin(make_tiny_model(tmp_path / "tiny"), tmp_path / "models" / "tiny.Q8_0.gguf", "Q8_0")
    config = {"OpenRuntimeApp": {"models_dir": str(tmp_path / "models")}}
    with running_server(tmp_path, command, base_url=base, config=config) as server:
        run(story(server))


async def shows_loaded_model(page: Page, server: Server) -> None:
    """Check that a model in memory has its engine, type and speed."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Who waits?"}], "max_tokens": 8}
    server.request("POST", "/v1/chat/completions", json=body).raise_for_status()
    model = re.compile(r"tiny.*llama\.cpp · Q8_0 · [\d.]+ tokens/s; idle · ", re.DOTALL)
    await expect(page.locator(".or-models li")).to_contain_text(model, timeout=60_000)


async def shows_time_of_old_data(page: Page, server: Server) -> None:
    """Check that the page shows when its data was read while the server does not respond."""
    assert "as of" not in await page.locator(".or-header").inner_text()
    os.kill(server.pid, signal.SIGKILL)
    await expect(page.locator(".or-header")).to_contain_text(re.compile(r"waiting · as of \d+ \w+ \d\d:\d\d"), timeout=60_000)


async def fits_side_panels(page: Page) -> None:
    """Check the layout at the width of a side panel: nothing is cut off, the periods are in one line, and tasks come before charts."""
    for width in (280, 240):
        await page.set_viewport_size({"width": width, "height": 900})
        await settled(page)
        assert await page.evaluate(OVERFLOW) == [], width
        boxes = [await box.bounding_box() for box in await page.locator(".or-choice label").all()]
        assert len({box["y"] for box in boxes if box}) == 1, width
        table, chart = await page.locator("table.or-tasks").bounding_box(), await page.locator(".or-charts").bounding_box()
        assert table is not None
        assert chart is not None
        assert table["y"] < chart["y"]
    await page.set_viewport_size({"width": 1280, "height": 900})


def test_page_needs_a_login(tmp_path: Path) -> None:
    with running_server(tmp_path, JUPYTER) as server:
        answer = server.client.get(f"{server.url}/dashboard", follow_redirects=False)
        assert answer.status_code in (302, 401, 403)
        assert "dashboard/page.js" not in answer.text
