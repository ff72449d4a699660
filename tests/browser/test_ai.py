"""Prompts in JupyterLab and Notebook 7: streaming, inserted cells, and no execution of scripts in answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from playwright.async_api import Locator, expect

from tests.ai.provider_server import Connection, ProviderServer, Request, providing, usage
from tests.browser.lab import APPS, LAB, App, new_notebook, opened
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LOAD = "%load_ext openruntime_jupyter"
EVIL = "<img src=x onerror=\"document.title='run'\"> ![p](x.png) [link](javascript:document.title='run')"
CODE = "Here:\n\n```python\nanswer = 6 * 7\n```\n"

go_on = threading.Event()
"""Event that releases the second half of the provider's answer."""


def answer(connection: Connection, request: Request) -> None:
    asked = request.json["messages"][-1]["content"]
    connection.begin()
    if "code" in asked:
        connection.text(f"<think>\nFirst line\n\n```python\nanswer = 0 {EVIL}\n</think>\n\n", CODE)
    else:
        connection.text("The **first** part.\n\n", finish=None)
        assert go_on.wait(200)
        connection.text(f"The second part. {EVIL}")
    connection.event(usage(10, 5))
    connection.event("[DONE]")


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(answer) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, provider: ProviderServer) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("lab"))
    told = {"OPENRUNTIME_AI_BASE_URL": provider.url, "OPENRUNTIME_AI_MODEL": "any"}
    with running_server(home, LAB, environment=told, base_url="/user/x/") as running:
        yield running


async def upper_edge(place: Locator) -> float:
    box = await place.bounding_box()
    assert box is not None
    return float(box["y"])


@pytest.mark.parametrize("app", APPS)
async def test_answer_streams_into_page_without_running_scripts(server: Server, app: App) -> None:
    new_notebook(server, f"grow-{app}.ipynb", LOAD, "%%openruntime ai --name growing\ntell me")
    go_on.clear()
    async with opened(server, f"grow-{app}.ipynb", app) as notebook:
        await notebook.start_all()
        shown = notebook.page.locator(".jp-RenderedMarkdown")
        line = notebook.page.locator(".jp-OpenRuntime-task")
        await expect(shown).to_contain_text("The first part.")
        await expect(shown.locator("strong")).to_have_text("first")
        await expect(line).to_contain_text("running")
        assert "second part" not in await shown.inner_text()
        top = await upper_edge(shown)
        go_on.set()
        await expect(shown).to_contain_text("The second part.")
        await expect(line).to_contain_text("completed in")
        await expect(line).to_contain_text("5 tokens")
        assert await upper_edge(shown) == top, "the layout does not shift"
        assert await shown.count() == 1
        assert await shown.locator("img").count() == 0
        await expect(shown).to_contain_text("<img src=x")
        assert await shown.locator("a[href^='javascript']").count() == 0
        await notebook.done()
        assert await notebook.page.title() != "run"
        assert [line for line in notebook.console if "x.png" in line] == [], "no image was requested"


async def test_insert_creates_cell_without_running_it(server: Server) -> None:
    new_notebook(server, "insert.ipynb", LOAD, "%%openruntime ai --insert\ngive me code", "print('answer' in globals())")
    async with opened(server, "insert.ipynb") as notebook:
        await notebook.run_all()
        cells = notebook.page.locator(".jp-CodeCell")
        await expect(cells).to_have_count(4)
        await expect(cells.nth(2).locator(".cm-content")).to_have_text("answer = 6 * 7")
        reasoning = cells.nth(1).locator(".jp-RenderedMarkdown details")
        await expect(reasoning.locator("summary")).to_have_text("Reasoning")
        assert await reasoning.get_attribute("open") is None
        assert await reasoning.locator("br").count() >= 2
        await expect(reasoning).to_contain_text("<img src=x")
        assert await reasoning.locator("img, a, code").count() == 0
        await expect(cells.nth(1).locator(".jp-RenderedMarkdown pre code")).to_contain_text("answer = 6 * 7")
        await expect(cells.nth(3).locator(".jp-OutputArea")).to_contain_text("False")
