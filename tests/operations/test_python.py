from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tests.runtimes import cell, ended, live, printed, runtime_in, submit, value


def run(folder: Path, code: str, **parameters: Any) -> Any:
    """The outputs of a cell."""

    async def body() -> Any:
        async with runtime_in(folder) as runtime:
            return await value(runtime, await submit(runtime, "python", {"code": code, **parameters}))

    return live(body())


def test_inputs_by_json_and_by_pickle_come_in_and_outputs_come_back_by_name(tmp_path: Path) -> None:
    packed = base64.b64encode(cloudpickle.dumps({"double": lambda n: 2 * n, "big": 1 << 100})).decode()
    found = run(tmp_path, "x = double(a) + big\nf = lambda: x", inputs={"a": 4}, pickled=packed, outputs=["x", "f"])
    assert found["x"] == 8 + (1 << 100)
    assert found["f"]() == found["x"], "a function of the cell comes back by value"


def test_mlx_arrays_are_computed_in_the_cell_as_numpy_computes_them(tmp_path: Path) -> None:
    import numpy as np

    code = "import mlx.core as mx, numpy as np\na = mx.arange(12).reshape(3, 4).astype(mx.float32)\nx = np.array(mx.linalg.norm(a @ a.T))"
    a = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert run(tmp_path, code, outputs=["x"])["x"] == pytest.approx(np.linalg.norm(a @ a.T), rel=1e-6)


def test_magics_shell_lines_and_top_level_await_work_as_in_a_notebook(tmp_path: Path) -> None:
    code = "import asyncio\nawait asyncio.sleep(0)\nlisted = !echo one; echo two\n%timeit -n1 -r1 pass\nx = [str(line) for line in listed]"
    assert run(tmp_path, code, outputs=["x"]) == {"x": ["one", "two"]}


def test_a_class_of_the_cell_can_be_pickled_in_the_cell(tmp_path: Path) -> None:
    code = "import pickle\nclass Point:\n    x = 3\nx = pickle.loads(pickle.dumps(Point())).x"
    assert run(tmp_path, code, outputs=["x"]) == {"x": 3}


def test_a_plot_is_shown_as_a_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            task_id = await cell(runtime, "import matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()")
            assert (await ended(runtime, task_id, 60)).status == "completed"
            output = await runtime.tasks.output(task_id)
            pictures = [item.data["image/png"] for item in output.items if item.data and "image/png" in item.data]
            assert len(pictures) == 1
            assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")

    live(body())


def test_a_notebooks_first_line_does_no_harm_and_a_semicolon_hides_a_value(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            for code, shown in (("%matplotlib inline\n!true\n6 * 7", ["42"]), ("!true\n6 * 7;  # hidden", []), ("'a;'", ["'a;'"])):
                task_id = await cell(runtime, code)
                task = await ended(runtime, task_id, 60)
                assert task.status == "completed", task.error
                output = await runtime.tasks.output(task_id)
                assert [item.data["text/plain"] for item in output.items if item.data] == shown

    live(body())


def test_a_syntax_error_points_at_the_cells_line(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            task = await ended(runtime, await submit(runtime, "python", {"code": "a = 1\nb = = 2", "filename": "<cell 3>"}))
            assert task.failure is not None
            assert task.failure.type == "SyntaxError"
            assert 'File "<cell 3>", line 2' in (task.failure.traceback or "")
            assert "runner.py" not in (task.failure.traceback or "")

    live(body())


def test_each_task_has_variables_of_its_own(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            await ended(runtime, await cell(runtime, "secret = 1"))
            task = await ended(runtime, await cell(runtime, "secret"))
            assert task.error == "NameError: name 'secret' is not defined"

    live(body())


def test_an_input_that_asks_for_a_keyboard_fails_at_once_and_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            task = await ended(runtime, await cell(runtime, "input('name? ')"))
            assert task.failure is not None
            assert task.failure.type == "EOFError"

    live(body())


def test_a_forgotten_process_of_a_task_may_print_later_without_harm(tmp_path: Path) -> None:
    async def body() -> None:
        async with runtime_in(tmp_path) as runtime:
            assert (
                await ended(runtime, await cell(runtime, "import subprocess\np = subprocess.Popen(['sh', '-c', 'exec sleep 600'])"))
            ).status == "completed"
            task_id = await cell(runtime, "print('next')")
            await ended(runtime, task_id)
            assert await printed(runtime, task_id) == "next\n"

    live(body())
