"""A user's day in one notebook: training, a live plot, data frames, an edited module, a kernel restart, and a failed cell."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest
from playwright.async_api import Locator, expect

from tests.ai.provider_server import Connection, ProviderServer, Request, providing, usage
from tests.browser.chromium import run
from tests.browser.lab import LAB, Notebook, new_notebook, opened, until
from tests.browser.test_quickstart import named, select
from tests.support import Home, Server, running_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

CELLS = {
    "load": "%load_ext openruntime_jupyter\nimport pandas as pd\nfrom openruntime_jupyter import progress",
    "train": """%%openruntime --name train --out losses
import time
from tqdm.auto import trange
import mlx.core as mx

w, losses = mx.zeros((64, 1)), []
x = mx.random.normal((512, 64))
y = x @ mx.random.normal((64, 1))
step = mx.value_and_grad(lambda w: mx.mean((x @ w - y) ** 2))
bar = trange(200, desc="training")
for epoch in bar:
    loss, slope = step(w)
    w = w - 0.05 * slope
    losses.append(loss.item())
    bar.set_postfix(loss=f"{losses[-1]:.3f}")
    time.sleep(0.3)""",
    "plot": """%%openruntime --name plot --in losses
import time
import matplotlib.pyplot as plt
from IPython.display import clear_output

for shown in range(20, len(losses) + 1, 20):
    clear_output(wait=True)
    plt.figure(figsize=(5, 2))
    plt.semilogy(losses[:shown])
    plt.title(f"loss of {shown} epochs")
    plt.show()
    time.sleep(0.4)""",
    "frame": """frame = pd.DataFrame({"model": ["small", "large"] * 50, "score": range(100)})
%openruntime tasks name=plot""",
    "summary": """%%openruntime --in frame --out summary
summary = frame.groupby("model").score.agg(["mean", "max"])
summary""",
    "module": """%%openruntime --out version
from features import version
version = version()
print("features of version", version)""",
    "long": """%%openruntime --name long --out weights
import os, time
from tqdm import tqdm
for part in tqdm(range(10_000), desc="fitting"):
    time.sleep(0.02)
    if os.path.exists("go"):
        break
weights = [part > 0, 2, 3]""",
    "result": "",
    "failing": """%%openruntime --in weights
total = sum(wieghts)
print("the total is", total)""",
    "fix": "%openruntime fix",
    "end": "# the end",
}
"""The training takes a minute, mostly asleep, so that the time left and the status line are those of a real one."""
NAMES = list(CELLS)
CORRECTED = CELLS["failing"].replace("wieghts", "weights")


def answer(connection: Connection, request: Request) -> None:
    assert "wieghts" in request.json["messages"][-1]["content"]
    connection.begin()
    connection.text(f"The variable is called `weights`.\n\n```python\n{CORRECTED}\n```\n")
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
    with running_server(home, LAB, environment=told) as running:
        yield running


class Day:
    """The notebook with its cells by name."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def output(self, name: str) -> Locator:
        return self.notebook.page.locator(".jp-CodeCell").nth(NAMES.index(name)).locator(".jp-OutputArea").first

    async def start(self, name: str, code: str | None = None) -> Locator:
        """Start a cell, after replacing its code if given. Return its output."""
        if code is not None:
            await self.notebook.page.locator(".jp-CodeCell").nth(NAMES.index(name)).locator(".cm-content").fill(code)
        await select(self.notebook, NAMES.index(name))
        await self.notebook.menu("Run", "Run Selected Cell")
        return self.output(name)

    async def run(self, name: str, code: str | None = None) -> Locator:
        """Run a cell to its end."""
        output = await self.start(name, code)
        await self.notebook.done()
        return output


def write_module(server: Server, version: int) -> None:
    """Write the module `features`. Editors may write twice within the resolution of a file's time."""
    path = server.home.path / "features.py"
    path.write_text(f"def version():\n    return {version}\n")
    os.utime(path, (time.time(), 1_790_000_000))


def test_day_of_a_user(server: Server) -> None:
    new_notebook(server, "day.ipynb", *CELLS.values())

    async def story() -> None:
        async with opened(server, "day.ipynb") as notebook:
            day = Day(notebook)
            await day.run("load")
            await train_and_plot(day)
            await use_data_and_modules(day, server)
            await restart(day, server)
            await fix(day)

    run(story())


async def train_and_plot(day: Day) -> None:
    output = await day.start("train")
    await expect(output).to_contain_text(re.compile(r"[1-9]\d?% \(\d+ of 200\) · about \d+ s left.*loss=\d", re.DOTALL))
    await expect(output).to_contain_text(re.compile(r"training:\s+100%.*200/200"), timeout=180_000)
    await expect(output).to_contain_text(re.compile(r"completed in 1 min.*[\d.]+ [kMG]B", re.DOTALL))
    await day.notebook.done()

    output = await day.start("plot")
    pictures = output.locator("img")
    await expect(pictures.first).to_be_visible()
    await expect(output).to_contain_text("completed in")
    await day.notebook.done()
    await expect(pictures).to_have_count(1)
    assert await output.locator(".jp-OutputArea-child").count() == 2, "the status line and one plot"


async def use_data_and_modules(day: Day, server: Server) -> None:
    await expect(await day.run("frame")).to_contain_text("completed")
    output = await day.run("summary")
    await expect(output.locator("table.dataframe")).to_contain_text("large")
    output = await day.run("frame", "print(list(summary['mean']), type(summary).__name__)")
    await expect(output).to_have_text("[50.0, 49.0] DataFrame")
    for version in (1, 2):
        write_module(server, version)
        await expect(await day.run("module")).to_contain_text(f"features of version {version}")


async def restart(day: Day, server: Server) -> None:
    notebook = day.notebook
    output = await day.start("long")
    await expect(output).to_contain_text(re.compile(r"\d+% \(\d+ of 10,000\)"))
    await notebook.menu("Kernel", "Restart Kernel…")
    await notebook.page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    await notebook.idle()
    await expect(output).to_contain_text(re.compile(r"long\s*running"))
    assert named(server, "long", "running"), "the task continues"
    (server.home.path / "go").touch()
    await until(lambda: bool(named(server, "long", "completed")), "the task completes without its kernel")
    output = await day.run("load")
    await expect(output).to_contain_text(re.compile("1 task of this notebook finished while you were away:.*long"))
    command = re.search(r"%openruntime result task_\w+ --set", await output.inner_text())
    assert command is not None
    await expect(await day.run("result", f"{command[0]}\nprint(weights)")).to_contain_text("[True, 2, 3]")


async def fix(day: Day) -> None:
    notebook = day.notebook
    output = await day.run("failing")
    await expect(output.locator(".ort-x")).to_contain_text("name 'wieghts' is not defined")
    await expect(output.locator(".ort-x")).to_contain_text("%openruntime fix")
    output = await day.run("fix")
    await expect(output).to_contain_text("The variable is called weights")
    cells = notebook.page.locator(".jp-CodeCell")
    await expect(cells).to_have_count(len(NAMES) + 1)
    place = NAMES.index("fix") + 1
    corrected = cells.nth(place)
    await expect(corrected.locator(".cm-content")).to_contain_text("sum(weights)")
    await expect(corrected.locator(".jp-OutputArea-child")).to_have_count(0)
    await select(notebook, place)
    await notebook.menu("Run", "Run Selected Cell")
    await expect(corrected.locator(".jp-OutputArea")).to_contain_text("the total is 6")
    await notebook.done()
