from __future__ import annotations

import base64
from typing import Any

import cloudpickle

from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import cell, completed, failed, printed, submit, value


async def outputs(runtime: Runtime, code: str, **parameters: Any) -> Any:
    """Run a cell and return its outputs."""
    return await value(runtime, await submit(runtime, "python", {"code": code, **parameters}))


async def test_json_and_pickled_inputs_and_named_outputs(runtime: Runtime) -> None:
    packed = base64.b64encode(cloudpickle.dumps({"double": lambda n: 2 * n, "big": 1 << 100})).decode()
    found = await outputs(runtime, "x = double(a) + big\nf = lambda: x", inputs={"a": 4}, pickled=packed, outputs=["x", "f"])
    assert found["x"] == 8 + (1 << 100)
    assert found["f"]() == found["x"], "a function of the cell comes back by value"


async def test_magics_shell_lines_and_top_level_await_work(runtime: Runtime) -> None:
    code = "import asyncio\nawait asyncio.sleep(0)\nlisted = !echo one; echo two\n%timeit -n1 -r1 pass\nx = [str(line) for line in listed]"
    assert await outputs(runtime, code, outputs=["x"]) == {"x": ["one", "two"]}


async def test_class_of_cell_can_be_pickled(runtime: Runtime) -> None:
    code = "import pickle\nclass Point:\n    x = 3\nx = pickle.loads(pickle.dumps(Point())).x"
    assert await outputs(runtime, code, outputs=["x"]) == {"x": 3}


async def test_plot_is_displayed_as_picture(runtime: Runtime) -> None:
    task_id = await cell(runtime, "import matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()")
    await completed(runtime, task_id, 60)
    output = await runtime.tasks.output(task_id)
    pictures = [item.data["image/png"] for item in output.items if item.data and "image/png" in item.data]
    assert len(pictures) == 1
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")


async def test_matplotlib_magic_works_and_semicolon_hides_value(runtime: Runtime) -> None:
    for code, shown in (("%matplotlib inline\n!true\n6 * 7", ["42"]), ("!true\n6 * 7;  # hidden", []), ("'a;'", ["'a;'"])):
        task_id = await cell(runtime, code)
        await completed(runtime, task_id, 60)
        output = await runtime.tasks.output(task_id)
        assert [item.data["text/plain"] for item in output.items if item.data] == shown


async def test_syntax_error_points_at_line_of_cell(runtime: Runtime) -> None:
    failure = await failed(runtime, await submit(runtime, "python", {"code": "a = 1\nb = = 2", "filename": "<cell 3>"}))
    assert failure.type == "SyntaxError"
    assert 'File "<cell 3>", line 2' in (failure.traceback or "")
    assert "runner.py" not in (failure.traceback or "")


async def test_input_call_fails_immediately_with_reason(runtime: Runtime) -> None:
    failure = await failed(runtime, await cell(runtime, "input('name? ')"))
    assert failure.type == "EOFError"


async def test_late_output_of_subprocess_is_harmless(runtime: Runtime) -> None:
    await completed(runtime, await cell(runtime, "import subprocess\np = subprocess.Popen(['sh', '-c', 'exec sleep 600'])"))
    task_id = await cell(runtime, "print('next')")
    await completed(runtime, task_id)
    assert await printed(runtime, task_id) == "next\n"
