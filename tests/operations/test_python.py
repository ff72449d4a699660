from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tests.runtimes import cell, completed, ended, failed, printed, runtime_in, submit, value


async def run(folder: Path, code: str, **parameters: Any) -> Any:
    """Run a cell and return its outputs."""
    async with runtime_in(folder) as runtime:
        return await value(runtime, await submit(runtime, "python", {"code": code, **parameters}))


async def test_json_and_pickled_inputs_and_named_outputs(tmp_path: Path) -> None:
    packed = base64.b64encode(cloudpickle.dumps({"double": lambda n: 2 * n, "big": 1 << 100})).decode()
    found = await run(tmp_path, "x = double(a) + big\nf = lambda: x", inputs={"a": 4}, pickled=packed, outputs=["x", "f"])
    assert found["x"] == 8 + (1 << 100)
    assert found["f"]() == found["x"], "a function of the cell comes back by value"


async def test_mlx_results_in_cell_agree_with_numpy(tmp_path: Path) -> None:
    import numpy as np

    code = "import mlx.core as mx, numpy as np\na = mx.arange(12).reshape(3, 4).astype(mx.float32)\nx = np.array(mx.linalg.norm(a @ a.T))"
    a = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert (await run(tmp_path, code, outputs=["x"]))["x"] == pytest.approx(np.linalg.norm(a @ a.T), rel=1e-6)


async def test_magics_shell_lines_and_top_level_await_work(tmp_path: Path) -> None:
    code = "import asyncio\nawait asyncio.sleep(0)\nlisted = !echo one; echo two\n%timeit -n1 -r1 pass\nx = [str(line) for line in listed]"
    assert await run(tmp_path, code, outputs=["x"]) == {"x": ["one", "two"]}


async def test_class_of_cell_can_be_pickled(tmp_path: Path) -> None:
    code = "import pickle\nclass Point:\n    x = 3\nx = pickle.loads(pickle.dumps(Point())).x"
    assert await run(tmp_path, code, outputs=["x"]) == {"x": 3}


async def test_plot_is_displayed_as_picture(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        task_id = await cell(runtime, "import matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()")
        await completed(runtime, task_id, 60)
        output = await runtime.tasks.output(task_id)
        pictures = [item.data["image/png"] for item in output.items if item.data and "image/png" in item.data]
        assert len(pictures) == 1
        assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")


async def test_matplotlib_magic_works_and_semicolon_hides_value(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        for code, shown in (("%matplotlib inline\n!true\n6 * 7", ["42"]), ("!true\n6 * 7;  # hidden", []), ("'a;'", ["'a;'"])):
            task_id = await cell(runtime, code)
            await completed(runtime, task_id, 60)
            output = await runtime.tasks.output(task_id)
            assert [item.data["text/plain"] for item in output.items if item.data] == shown


async def test_syntax_error_points_at_line_of_cell(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        failure = await failed(runtime, await submit(runtime, "python", {"code": "a = 1\nb = = 2", "filename": "<cell 3>"}))
        assert failure.type == "SyntaxError"
        assert 'File "<cell 3>", line 2' in (failure.traceback or "")
        assert "runner.py" not in (failure.traceback or "")


async def test_tasks_do_not_share_variables(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await ended(runtime, await cell(runtime, "secret = 1"))
        task = await ended(runtime, await cell(runtime, "secret"))
        assert task.error == "NameError: name 'secret' is not defined"


async def test_input_call_fails_immediately_with_reason(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        failure = await failed(runtime, await cell(runtime, "input('name? ')"))
        assert failure.type == "EOFError"


async def test_late_output_of_subprocess_is_harmless(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        assert (
            await ended(runtime, await cell(runtime, "import subprocess\np = subprocess.Popen(['sh', '-c', 'exec sleep 600'])"))
        ).status == "completed"
        task_id = await cell(runtime, "print('next')")
        await ended(runtime, task_id)
        assert await printed(runtime, task_id) == "next\n"
