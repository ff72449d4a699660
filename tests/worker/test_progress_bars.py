"""Progress of tasks from their tqdm bars, with real workers."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.tasks import Progress
from tests.runtimes import cell, ended, pickled, says, submit

NESTED = "for i in tqdm(range(5), desc='epochs'):\n    for j in tqdm(range(20), leave=False): pass"
IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
bar = tqdm(total=8, desc='files')
def work(_):
    for _ in tqdm(range(50), mininterval=0): pass
    bar.update()
with ThreadPoolExecutor(8) as pool: list(pool.map(work, range(8)))
bar.close()
"""
FORKED = """
import os
if (child := os.fork()) == 0:
    try:
        for i in tqdm(range(1000), mininterval=0): pass
    finally:
        os._exit(7 if i == 999 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
for i in tqdm(range(2)): pass
"""
EACH: list[tuple[str, str, tuple[float, float | None, str | None] | None]] = [
    ("tqdm", NESTED, (5, 5, "epochs")),
    ("tqdm.notebook", NESTED, (5, 5, "epochs")),
    ("tqdm", "left_open = tqdm(total=10, desc='left open', mininterval=0); left_open.update(10)", (10, 10, "left open")),
    ("tqdm.auto", "for i in tqdm(iter('abcdefg'), desc='rows'): pass", (7, None, "rows")),
    ("tqdm", "for i in tqdm(range(7)): 1 / (3 - i)", (3, 7, None)),
    ("tqdm", "for i in tqdm(range(9), disable=True): pass", None),
    ("tqdm", "from openruntime_jupyter import progress\nprogress(1, 4, 'mine')\nfor i in tqdm(range(9)): pass", (1, 4, "mine")),
    ("tqdm", IN_THREADS, (8, 8, "files")),
    ("tqdm", FORKED, (2, 2, None)),
]


async def test_outermost_bar_is_the_progress_of_its_task(runtime: Runtime) -> None:
    for module, code, expected in EACH:  # one after the other in one worker: no bar counts in a later task
        task = await ended(runtime, await cell(runtime, f"from {module} import tqdm\n{code}", session="one"))
        assert task.error in (None, "ZeroDivisionError: division by zero"), code
        assert _seen(task.progress) == expected, code


@pytest.mark.parametrize("leave", [False, True])
async def test_nested_bars_share_one_line(runtime: Runtime, leave: bool) -> None:
    inner = f"    for j in tqdm(range(50), desc='batches of this epoch', leave={leave}, mininterval=0): pass"
    task = await ended(runtime, await cell(runtime, f"from tqdm.auto import tqdm\nfor i in tqdm(range(3), desc='epochs'):\n{inner}"))
    text = "".join(item.text or "" for item in (await runtime.tasks.output(task.task_id)).items)
    assert "\x1b" not in text, "pages cannot move the cursor"
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip("\n").split("\n")]
    assert len(lines) == (4 if leave else 1)
    assert lines[-1].startswith("epochs: 100%")
    assert all(line.startswith("batches of this epoch: 100%") for line in lines[:-1])
    assert all(line.endswith("it/s]") and line.count("it/s") == 1 for line in lines), "no rest of a longer bar"


@pytest.mark.parametrize("ahead", [False, True])
async def test_automatic_bars_are_widgets_in_notebooks(runtime: Runtime, ahead: bool) -> None:
    notebook = {"kernel": uuid4().hex, "notebook": "train.ipynb"}
    code = "from tqdm.auto import tqdm\nassert tqdm(range(5), desc='epochs').total == 5\nfor i in tqdm(range(4), desc='steps'): pass"
    if ahead:  # the next worker of this kernel imports tqdm before its task
        await ended(runtime, await submit(runtime, "python", {"code": "import tqdm.auto", "world": notebook}))
    task = await ended(runtime, await submit(runtime, "python", {"code": code, "world": notebook}))
    assert task.error is None
    assert _seen(task.progress) == (0, 5, "epochs")
    items = (await runtime.tasks.output(task.task_id)).items
    assert [item.output_type for item in items] == ["display_data", "display_data"]
    assert all("progress" in (item.data or {})["text/html"] for item in items)
    assert (items[1].data or {})["text/plain"].split()[:2] == ["steps:", "100%"]


async def test_bar_of_a_call_is_seen_while_it_runs(runtime: Runtime) -> None:
    def fit() -> None:
        import time

        from tqdm.auto import trange  # type: ignore[import-untyped]

        with trange(10, desc="fit") as bar:
            for loss in (0.5, 0.25, 0.125, 0.0625):
                bar.update()
                bar.set_postfix(loss=loss)
                time.sleep(0.1)
            print("in", flush=True)  # noqa: T201 - output of the task
            time.sleep(600)

    task_id = await submit(runtime, "call", pickled(fit))
    await says(runtime, task_id, "in")
    progress: Any = (await runtime.tasks.get(task_id)).progress
    assert _seen(progress) == (4, 10, "fit, loss=0.0625")
    assert 0 < progress.remaining < 60
    await runtime.cancel(task_id)


def _seen(progress: Progress | None) -> tuple[float, float | None, str | None] | None:
    return None if progress is None else (progress.n, progress.total, progress.message)
