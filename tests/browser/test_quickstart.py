"""The quick-start notebook of `make lab`, and the stop button."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from playwright.async_api import FloatRect, Locator, expect

from tests.browser.lab import Notebook, new_notebook, opened, until
from tests.support import Server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

QUICKSTART = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"
LOOP = "%%openruntime --name endless\nimport time\nprint('it runs', flush=True)\nwhile True:\n    time.sleep(0.05)"


def named(server: Server, name: str, *states: str) -> list[dict[str, object]]:
    return [task for task in server.get("/tasks", params={"state": list(states)})["tasks"] if task["name"] == name]


async def test_quickstart_notebook_runs_without_errors(server: Server) -> None:
    """Its saved outputs are of another server, which this one does not know."""
    shutil.copy(QUICKSTART, server.home.path)
    async with opened(server, QUICKSTART.name) as notebook:
        notebook.expected.append("404")
        task = notebook.page.locator(".jp-OpenRuntime-task").first
        await task.get_by_role("button", name="Retry").click()
        await expect(task).to_contain_text("Unknown task")
        await expect(task.get_by_role("button")).to_have_count(0)
        await notebook.menu("Edit", "Clear Outputs of All Cells")
        await notebook.run_all()
        assert await notebook.errors() == []
    assert server.get("/tasks")["total_count"] > 0, "the notebook's tasks ran on the server"


async def test_interrupt_cancels_task_and_keeps_kernel(server: Server) -> None:
    new_notebook(server, "stop.ipynb", "%load_ext openruntime_jupyter", LOOP, "print('the kernel is', 'usable')")
    async with opened(server, "stop.ipynb") as notebook:
        await notebook.start_all()
        await until(lambda: bool(named(server, "endless", "running")), "the task runs")
        line = notebook.page.locator(".jp-OpenRuntime-task").filter(has_text="endless")
        await expect(line).to_contain_text(re.compile("running.*s"))
        before = await place(line)
        await notebook.page.click("[data-command='notebook:interrupt-kernel']")
        await until(lambda: bool(named(server, "endless", "cancelled")), "the task is cancelled")
        await expect(line).to_contain_text("cancelled after")
        assert await place(line) == before, "the layout does not shift"
        await notebook.idle()
        await select(notebook, 2)
        await notebook.menu("Run", "Run Selected Cell")
        await notebook.done()
        assert "the kernel is usable" in await notebook.text(2)


async def place(line: Locator) -> FloatRect:
    """Return the position of an element. During an update it has none for a moment, so retry."""
    for _ in range(50):
        if (box := await line.bounding_box()) is not None:
            return box
        await asyncio.sleep(0.05)
    raise AssertionError("it is not shown")


async def select(notebook: Notebook, cell: int) -> None:
    await notebook.page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputArea-prompt").click()
