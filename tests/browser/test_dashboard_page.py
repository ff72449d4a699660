"""The dashboard on a separate page, without Jupyter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.chromium import new_page, run
from tests.support import JUPYTER, STANDALONE, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

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
            await row.get_by_role("button", name="Cancel counter").click()
            await expect(row).to_contain_text("cancelled", timeout=60_000)
            assert server.finished(task["task_id"])["status"] == "cancelled"
        assert errors == []

    base = "/" if command == STANDALONE else "/user/ann/"
    with running_server(tmp_path, command, base_url=base) as server:
        run(story(server))


def test_page_needs_a_login(tmp_path: Path) -> None:
    with running_server(tmp_path, JUPYTER) as server:
        answer = server.client.get(f"{server.url}/dashboard", follow_redirects=False)
        assert answer.status_code in (302, 401, 403)
        assert "dashboard/page.js" not in answer.text
