"""Cells in JupyterLab and Notebook 7: large output, notifications and error cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from openruntime_jupyter import notebook
from openruntime_jupyter.notebook.display.tasks import TaskLine
from tests.browser.chromium import new_page, run
from tests.browser.lab import LAB, App, new_notebook, opened, until
from tests.browser.test_quickstart import named
from tests.notebook.test_views import task
from tests.support import Home, Server, running_server, slowness

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LOAD = "%load_ext openruntime_jupyter"
LINES = 1_000_000
FLOOD = f"%%openruntime --name flood\nfor number in range({LINES}):\n    print('line', number)"
RECORD = """(permission) => {
  window.told = [];
  window.Notification = class {
    static requestPermission() { window.Notification.permission = "granted"; return Promise.resolve("granted"); }
    constructor(head, options) { window.told.push([head, options.body]); }
    close() {}
  };
  window.Notification.permission = permission;
  document.hasFocus = () => false;
}"""
"""Fake desktop notifications, which a headless browser lacks. The page pretends to be in the background."""
LONG = """%%openruntime --notify --name long
import time
from pathlib import Path
while not Path("go").exists():
    time.sleep(0.05)
"""
STALLS = """() => {
  window.longest = 0;
  let last = performance.now();
  setInterval(() => { const now = performance.now(); window.longest = Math.max(window.longest, now - last); last = now; }, 50);
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("lab"))
    with running_server(home, LAB) as running:
        yield running


def test_million_lines_keep_page_usable(server: Server) -> None:
    new_notebook(server, "flood.ipynb", LOAD, FLOOD, "print('the page', 'lives')")

    async def story() -> None:
        async with opened(server, "flood.ipynb") as notebook:
            await notebook.page.evaluate(STALLS)
            await notebook.run_all()
            shown = await notebook.text(1)
            assert "line 0\n" in shown
            assert f"line {LINES - 1}" in shown, "the end is kept"
            assert "left out" in shown, "the omission is reported"
            assert len(shown) < 2_000_000
            assert "the page lives" in await notebook.text(2)
            # The page responds to typing.
            editor = notebook.page.locator(".jp-CodeCell").nth(2).locator(".cm-content")
            await editor.click()
            await notebook.page.keyboard.type("# typed")
            await expect(editor).to_contain_text("# typed")
            assert await notebook.page.evaluate("() => window.longest") < 20_000 * slowness()

    run(story())


@pytest.mark.parametrize(("permission", "app"), [("granted", "notebook7"), ("default", "lab"), ("denied", "notebook7")])
def test_notify_for_cell_respects_permission(server: Server, permission: str, app: App) -> None:
    name = f"{permission}-{app}.ipynb"
    new_notebook(server, name, LOAD, LONG)
    (server.home.path / "go").unlink(missing_ok=True)

    async def story() -> None:
        async with opened(server, name, app) as notebook:
            page = notebook.page
            await page.evaluate(RECORD, permission)
            await notebook.start_all()
            output = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea")
            asked = {"granted": "notifies you", "default": "Allow notifications", "denied": "its title shows it"}[permission]
            await expect(output).to_contain_text(asked)
            if permission == "default":
                await output.get_by_role("button", name="Allow notifications").click()
                await expect(output).to_contain_text("notifies you")
            (server.home.path / "go").touch()
            await notebook.done()
            await expect(page).to_have_title(re.compile("✓ long completed in"))
            told = await page.evaluate("() => window.told")
            if permission == "denied":
                assert told == []
                await expect(output).not_to_contain_text("Notified")
            else:
                assert [head[:16] for head, _ in told] == ["✓ long completed"]
                await expect(output).to_contain_text("Notified")
            await page.evaluate("() => window.dispatchEvent(new Event('focus'))")
            assert permission in await page.title(), "the page title is restored on return"

    run(story())


def test_notify_for_background_task_while_kernel_is_busy(server: Server) -> None:
    busy = "import time\nfrom pathlib import Path\nwhile not Path('over').exists():\n    time.sleep(0.05)"
    new_notebook(server, "later.ipynb", LOAD, LONG.replace("--notify", "--bg --notify"), busy)
    for file in ("go", "over"):
        (server.home.path / file).unlink(missing_ok=True)

    async def story() -> None:
        async with opened(server, "later.ipynb") as notebook:
            page = notebook.page
            await page.evaluate(RECORD, "granted")
            await notebook.start_all()
            output = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea")
            await expect(output).to_contain_text("notifies you when the task ends")
            (server.home.path / "go").touch()
            await expect(page).to_have_title(re.compile("✓ long completed in"))
            await expect(output).to_contain_text("Notified")
            assert [head[:16] for head, _ in await page.evaluate("() => window.told")] == ["✓ long completed"]
            assert await page.locator(".jp-CodeCell").nth(2).locator(".jp-InputPrompt").inner_text() == "[*]:", "the kernel is busy"
            (server.home.path / "over").touch()
            await notebook.done()

    run(story())


def test_card_of_background_task_is_live_and_restart_keeps_running_task(server: Server) -> None:
    def waits(name: str) -> str:
        return f"import time\nfrom pathlib import Path\nwhile not Path('{name}').exists():\n    time.sleep(0.05)\nvalue = 7"

    cells = (f"%%openruntime --bg --name early\n{waits('early')}", f"%%openruntime --name kept --out value\n{waits('kept')}")
    new_notebook(server, "restart.ipynb", LOAD, *cells)

    async def story() -> None:
        async with opened(server, "restart.ipynb") as notebook:
            page = notebook.page
            first, early, kept = (page.locator(".jp-CodeCell").nth(number).locator(".jp-OutputArea") for number in range(3))
            await notebook.start_all()
            await expect(early).to_contain_text("running")
            await expect(kept).to_contain_text("running")
            (server.home.path / "early").touch()
            await expect(early).to_contain_text("completed in")
            await notebook.restart()
            (server.home.path / "kept").touch()
            await until(lambda: bool(named(server, "kept", "completed")), "the task completes without its kernel")
            await page.locator(".jp-CodeCell").nth(0).locator(".cm-content").click()
            await page.keyboard.press("Control+Enter")
            await expect(first).to_contain_text(re.compile("1 task of this notebook finished while you were away:.*kept"))

    run(story())


STATUS_LINE = """() => {
  const cut = (part) => part.scrollWidth > part.clientWidth;
  const line = document.querySelector('.ort-l'), [name, facts, id] = ['.t', '.s', '.r'].map((part) => line.querySelector(part));
  return [cut(name), cut(facts), Math.round(id.getBoundingClientRect().left - facts.getBoundingClientRect().right)];
}"""
"""Script that returns whether the name and the facts are cut, and the room between facts and id."""


@pytest.mark.parametrize(("letters", "width", "cut"), [(60, 1400, False), (8, 1100, False), (60, 1000, True), (300, 1400, True)])
def test_status_line_cuts_only_the_name_and_only_without_room(letters: int, width: int, cut: bool) -> None:
    measured = {"memory_used_mb": 1234.5, "peak_memory_mb": 1234.5}
    fields = {"status": "completed", "execution_time": 4.2, "device_used": "d", "performance_metrics": measured}
    view = TaskLine(task(name="n" * letters, **fields), {"d": "A Processor With a Name, 64 Cores"})

    async def story() -> None:
        async with new_page(width, 200) as page:
            await page.set_content(str(view.html()))
            name_cut, facts_cut, room = await page.evaluate(STATUS_LINE)
            assert (name_cut, facts_cut) == (cut, False)
            assert not cut or room < 20

    run(story())


LINE = """<div class="jp-OpenRuntime-task" style="width: {width}px"><div class="or-line"><span class="or-sign">●</span>
<span class="or-name">{name}</span><span class="or-text">{text}</span><span class="or-bar"></span>
<span class="or-buttons"><button>Cancel</button><button>Open</button></span></div></div>"""
"""Line of a task as `labextension/src/output.ts` makes it."""
FONT = ":root { --jp-ui-font-size1: 13px; --jp-ui-font-family: sans-serif; }"
LINE_PARTS = """() => {
  const [name, text, buttons] = ['.or-name', '.or-text', '.or-buttons'].map((part) => document.querySelector(part).getBoundingClientRect());
  const cut = document.querySelector('.or-name').scrollWidth > name.width + 1;
  return [cut, text.height > 20, buttons.left - text.right < 200];
}"""
"""Script that returns whether the name is cut, whether the text has several lines, and whether all is on one row."""
MESSAGE = "running · 60% (36 of 60) · about 2 s left · 3.7 s · epoch 36 of 60 with a long message whose figures are at its end: loss 0.1234"


@pytest.mark.parametrize(
    ("letters", "text", "width", "cut", "several"),
    [(50, "completed in 6.1 s", 900, False, False), (50, MESSAGE, 900, True, True), (8, MESSAGE, 1200, False, False)],
)
def test_line_of_page_cuts_the_name_and_no_figures(letters: int, text: str, width: int, cut: bool, several: bool) -> None:
    style = (Path(notebook.__file__).parent / "labextension" / "style" / "base.raw.css").read_text()

    async def story() -> None:
        async with new_page(1280, 300) as page:
            await page.set_content(f"<style>{style}{FONT}</style>{LINE.format(name='n' * letters, text=text, width=width)}")
            assert await page.evaluate(LINE_PARTS) == [cut, several, True]

    run(story())


def test_error_card_collapses_traceback_and_stops_run_all(server: Server) -> None:
    new_notebook(server, "error.ipynb", LOAD, "%%openruntime\ndef divide(n):\n    return n / 0\n\ndivide(1)", "print('never', 'reached')")

    async def story() -> None:
        async with opened(server, "error.ipynb") as notebook:
            await notebook.run_all()
            output = notebook.page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea")
            card = output.locator(".ort-x")
            await expect(card).to_contain_text("ZeroDivisionError: division by zero")
            await expect(card).to_contain_text("line 3, in divide return n / 0")
            await expect(card.get_by_text("Traceback (most recent call last)")).to_be_hidden()
            await card.locator("summary").click()
            await expect(card.get_by_text("Traceback (most recent call last)")).to_be_visible()
            assert len(await notebook.errors()) == 1
            assert await notebook.text(2) == "", "Run All stopped"

    run(story())
