"""The reference's JavaScript example runs unchanged in the page of the dashboard. Pages of other origins need the token (test_cors.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.reference import JAVASCRIPT, at
from tests.browser.chromium import new_page
from tests.support import STANDALONE, running_server

pytestmark = [pytest.mark.browser]

CALL = """
const updated = new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error("no message about the task")), 60_000);
  ws.addEventListener("close", ({ code, reason }) => reject(new Error(`closed: ${code} ${reason}`)));
  ws.addEventListener("message", ({ data }) => JSON.parse(data).data?.status === "completed" && resolve());
});
await new Promise((resolve) => ws.addEventListener("open", resolve));
await Promise.all([submitTask(), updated]);
"""


async def test_javascript_example_runs_unchanged_in_page(tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE, token=None) as server:
        async with new_page(400, 300) as page:
            lines: list[str] = []
            page.on("console", lambda message: lines.append(message.text))
            await page.goto(f"{server.url}/dashboard")
            await page.evaluate(f"async () => {{ {at(server.url, JAVASCRIPT)}\n{CALL} }}")
            assert any(line.startswith("Task completed in ") for line in lines), lines
            assert any("task_update" in line for line in lines), lines
