"""The magics in real kernels with an embedded runtime and with a server."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.notebook.conftest import Cell, Kernel, error_of
from tests.support import slowness, wait_until

ENDLESS = "%%openruntime --name endless\nimport time\nprint('it runs', flush=True)\nwhile True:\n    time.sleep(0.01)"
STUBBORN = """%%openruntime --name stubborn
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('it runs', flush=True)
while True:
    try:
        time.sleep(0.01)
    except KeyboardInterrupt:
        print('no', flush=True)
"""


def it_runs(cell: Cell) -> bool:
    return "it runs" in cell.stream()


def states(kernel: Kernel, name: str) -> str:
    return kernel.value(f"[str(t.status) for t in __import__('openruntime_jupyter').connect().tasks().tasks if t.name == {name!r}]")


def test_cell_runs_in_worker_and_returns_outputs(kernel: Kernel) -> None:
    kernel.run("numbers, factor = [1, 2, 3], 7")
    cell = kernel.run(
        "%%openruntime --in numbers,factor --out total, pid\nimport os\ntotal, pid = sum(numbers) * factor, os.getpid()\nprint(total)"
    )
    assert cell.status == "ok", cell.error
    assert cell.stream() == "42\n"
    assert cell.line.startswith("✓ completed in ")
    assert kernel.value("total, pid != __import__('os').getpid()") == "(42, True)"


def test_output_streams_in_order(kernel: Kernel, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    code = f"""%%openruntime
import os, sys, time
from IPython.display import display, Markdown
print('it runs', flush=True)
while not os.path.exists({os.fspath(heard)!r}):  # it continues only after the check
    time.sleep(0.01)
display(Markdown('*rich*'))
print('warned', file=sys.stderr, flush=True)
time.sleep(0.2)
print('out again', flush=True)
6 * 7
"""
    cell = kernel.run(code, it_runs, heard.touch)
    said = [output.get("text") or output["data"]["text/plain"] for output in cell.outputs[1:]]
    assert said == ["it runs\n", "<IPython.core.display.Markdown object>", "warned\n", "out again\n", "42"]
    assert cell.outputs[2]["data"]["text/markdown"] == "*rich*"


def test_the_status_line_follows_the_progress_in_place(server_kernel: Kernel) -> None:
    code = """%%openruntime --name steps
import os
import time
from pathlib import Path
from openruntime_jupyter import progress
for n in range(12):
    progress(n + 1, 12, 'steps')
    time.sleep(0.1)
"""
    lines: list[str] = []
    cell = server_kernel.run(code, lambda cell: bool(cell.outputs and lines.append(cell.line)) or " of 12)" in "".join(lines[-1:]))
    assert [line for line in lines if re.search(r"of 12\).* · steps", line)], lines
    assert len(cell.outputs) == 1
    assert re.match(r"✓ completed in \d", cell.line)
    assert "text/html" in cell.outputs[0]["data"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--in nothing_like_it", "nothing_like_it"),
        ("--priority 11", "priority"),
        ("--device device_99", "device_99"),
        ("--in held", "held"),
    ],
)
def test_invalid_line_is_rejected_before_queueing(server_kernel: Kernel, line: str, said: str) -> None:
    server_kernel.run("import threading\nheld = threading.Lock()\nfrom openruntime_jupyter import connect")
    before = server_kernel.value("connect().tasks().total_count")
    cell = server_kernel.run(f"%%openruntime {line}\n1")
    assert cell.status == "error"
    assert said in error_of(cell)
    assert len(error_of(cell).splitlines()) == 1
    assert server_kernel.value("connect().tasks().total_count") == before


def test_interrupt_cancels_task_and_keeps_kernel(kernel: Kernel) -> None:
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        kernel.interrupt()

    cell = kernel.run(ENDLESS, it_runs, press)
    assert time.monotonic() - pressed[0] < 1.5 * slowness()
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert len(error_of(cell).splitlines()) == 1
    assert cell.line.startswith("■ cancelled after ")
    assert states(kernel, "endless") == "['cancelled']"
    assert kernel.value("6 * 7") == "42"


def test_second_interrupt_stops_watching(kernel: Kernel) -> None:
    pressed: list[float] = []

    def press() -> None:
        soon = 0.6 * slowness()
        kernel.interrupt()
        time.sleep(0.2)
        kernel.interrupt()
        pressed.append(time.monotonic() + soon)

    cell = kernel.run(STUBBORN, it_runs, press)
    assert time.monotonic() < pressed[0], "before the last stage of the cancel"
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert "no longer watched" in error_of(cell)
    wait_until(lambda: states(kernel, "stubborn") == "['cancelled']", 10, "the cancel goes on")


def test_background_task_returns_handle(kernel: Kernel) -> None:
    kernel.run("steps = 3")
    cell = kernel.run(
        "%%openruntime --bg --as job --in steps --out done\nimport time\ntime.sleep(0.3)\nprint('in the background')\ndone = steps + 1"
    )
    assert cell.status == "ok", cell.error
    assert "%openruntime wait task_" in cell.line
    assert "text/html" in cell.outputs[-1]["data"]
    assert kernel.value("job is _openruntime") == "True"
    watched = kernel.run("%openruntime wait job")
    assert watched.stream() == "in the background\n"
    assert watched.line.startswith("✓ completed")
    assert kernel.value("job.result()") == "{'done': 4}"
    assert kernel.run("%openruntime result job").value == "{'done': 4}"
    assert kernel.run("%openruntime output job").stream() == "in the background\n"


def test_interrupt_of_wait_keeps_task_running(kernel: Kernel) -> None:
    kernel.run(ENDLESS.replace("--name endless", "--bg --as patient --name patient"))
    watched = kernel.run("%openruntime wait patient", it_runs, kernel.interrupt)
    assert watched.error["ename"] == "KeyboardInterrupt"
    assert "continues to run" in error_of(watched)
    assert "no longer watched" in watched.line
    assert kernel.value("str(patient.status)") == "'running'"
    refused = kernel.run("%openruntime result patient")
    assert "still running" in refused.stream("stderr")
    cancelled = kernel.run("%openruntime cancel patient")
    assert cancelled.value.startswith("■ cancelled after ")


def test_the_result_of_a_failed_task_is_its_error(server_kernel: Kernel) -> None:
    server_kernel.run("%%openruntime --as wrong\nraise ValueError('on purpose')")
    for verb in ("result", "wait"):
        cell = server_kernel.run(f"%openruntime {verb} wrong")
        assert cell.error["ename"] == "TaskFailed"
        assert "on purpose" in cell.shown()[-1]


def test_operation_returns_its_result(kernel: Kernel) -> None:
    cell = kernel.run("%openruntime matrix_multiply size=64 iterations=2")
    assert cell.status == "ok", cell.error
    assert cell.line.startswith("✓ completed")
    assert "gflops" in cell.value
    kernel.run("found = %openruntime matrix_multiply m=8 n=16 k=4 iterations=1 --priority 9 --name 'small one'")
    assert kernel.value("found['n'], found.task.priority, found.task.name, isinstance(found, dict)") == "(16, 9, 'small one', True)"


def test_invalid_parameters_are_named(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%openruntime matrix_multiply sise=64 iterations=0")
    assert cell.error["ename"] == "InvalidRequest"
    assert "matrix_multiply has no parameter 'sise': did you mean size? It takes size, m, n, k" in error_of(cell)
    assert "iterations=0: must be greater than or equal to 1" in error_of(cell)
    assert len(error_of(cell).splitlines()) == 1


def test_retry_runs_task_again(server_kernel: Kernel) -> None:
    server_kernel.run("n = 3\nfrom pathlib import Path\nPath('sound').unlink(missing_ok=True)")
    line = "%%openruntime --in n --out twice --as first --priority 7 --name moody"
    code = "from pathlib import Path\nassert Path('sound').exists()\ntwice = 2 * n"
    assert server_kernel.run(f"{line}\n{code}").status == "error"
    server_kernel.run("Path('sound').touch()")
    cell = server_kernel.run("%openruntime retry first")
    assert cell.value == "{'twice': 6}"
    server_kernel.run("second = _openruntime")
    assert server_kernel.value("second.id != first.id, second.task.priority, second.task.name, second.task.origin") == (
        "(True, 7, 'moody', 'notebook')"
    )
    server_kernel.run("third = %openruntime again first --bg --priority 2")
    assert server_kernel.value("third.result(timeout=30), third.task.priority") == "({'twice': 6}, 2)"
    server_kernel.run(ENDLESS.replace("--name endless", "--bg --as patient"))
    assert "still" in server_kernel.run("%openruntime retry patient").stream("stderr")
    server_kernel.run("patient.cancel()")


def test_status_tasks_and_operations_are_tables_and_values(server_kernel: Kernel) -> None:
    tables = {
        "status": "device_0",
        "devices": "free memory",
        "workers": "worker_",
        "doctor": "to a worker and back",
        "tasks": "newest first",
        "operations": "matrix_multiply",
        "": "--memory-limit",
        "help": "--memory-limit",
    }
    for word, expected in tables.items():
        cell = server_kernel.run(f"%openruntime {word}")
        assert cell.status == "ok", cell.error
        assert expected in cell.value
        assert "<table" in cell.outputs[-1]["data"]["text/html"]
    server_kernel.run("%openruntime matrix_multiply size=8")
    server_kernel.run("found = %openruntime tasks limit=1 operation=matrix_multiply state=completed\nnow = %openruntime status")
    assert (
        server_kernel.value("[t.operation for t in found], found.total_count >= 1, now.health.status")
        == "(['matrix_multiply'], True, 'healthy')"
    )


def test_insights_are_a_card_and_a_value(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%openruntime insights metric=errors timeframe=5m")
    assert cell.status == "ok", cell.error
    assert "errors over the last 5m" in cell.value
    server_kernel.run("found = %openruntime insights")
    assert server_kernel.value("bool(found.findings)") == "True"
    for line in ("errors 6h", "6h errors", "errors timeframe=6h", "timeframe=6h metric=errors"):
        assert "errors over the last 6h" in server_kernel.run(f"%openruntime insights {line}").value


def test_priority_of_waiting_task_can_change(server_kernel: Kernel) -> None:
    server_kernel.run("%%openruntime --bg --as first\nimport time; time.sleep(600)")
    server_kernel.run("%%openruntime --bg --as second\nimport time; time.sleep(600)")
    server_kernel.run("%%openruntime --bg --as third\npass")
    moved = server_kernel.run("%openruntime priority third 9")
    assert moved.status == "ok", moved.error
    assert server_kernel.value("third.task.priority") == "9"
    server_kernel.run("for task in (first, second, third): task.cancel()")


def test_connect_switches_runtime_and_back(server_kernel: Kernel) -> None:
    where = "get_ipython().find_line_magic('openruntime')('status').where"
    usual = server_kernel.run(where).value
    assert "inside this process" in server_kernel.run("%openruntime connect embedded").value
    assert server_kernel.run(where).value == "'embedded'"
    server_kernel.run("%openruntime connect auto")
    assert server_kernel.run(where).value == usual


def test_braces_and_dollars_are_unchanged(server_kernel: Kernel) -> None:
    server_kernel.run("size = 3")
    server_kernel.run("%%openruntime --name '{size} $size' --as braces\nassert '{size}' == '{' + 'size}'")
    assert server_kernel.value("braces.task.name, str(braces.status)") == "('{size} $size', 'completed')"


def test_task_is_named_after_its_cell(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime --as unnamed\n1")
    assert server_kernel.value("unnamed.task.name") == f"'cell [{cell.error['execution_count']}]'"
    assert server_kernel.value("unnamed.task.origin") == "'notebook'"


def test_magics_inside_the_cell_work(server_kernel: Kernel) -> None:
    cell = server_kernel.run("%%openruntime\n%%time\nprint('timed')")
    assert cell.status == "ok", cell.error
    assert "timed" in cell.stream()
    assert "Wall time" in cell.stream()


def test_large_inputs_do_not_slow_the_status_line(server_kernel: Kernel) -> None:
    server_kernel.run("import numpy\nlarge = numpy.ones(1_000_000)")
    cell = server_kernel.run("%%openruntime --in large --out total\nimport time\ntime.sleep(1)\ntotal = float(large.sum())")
    assert cell.status == "ok", cell.error
    assert server_kernel.value("total") == "1000000.0"
    assert cell.updates >= 4


def test_extension_can_be_reloaded_and_unloaded(server_kernel: Kernel) -> None:
    assert server_kernel.run("%reload_ext openruntime_jupyter").status == "ok"
    assert server_kernel.run("%openruntime status").status == "ok"
    assert server_kernel.run("%unload_ext openruntime_jupyter").status == "ok"
    assert "not found" in server_kernel.run("%openruntime status").stream("stderr")
    assert server_kernel.run("%load_ext openruntime_jupyter").status == "ok"
    assert server_kernel.run("%openruntime status").status == "ok"


def test_interrupt_stops_notebook_even_if_task_completes(server_kernel: Kernel) -> None:
    code = """%%openruntime --as calm --out answer
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('it runs', flush=True)
time.sleep(0.3)
answer = 42
"""
    cell = server_kernel.run(code, it_runs, server_kernel.interrupt)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert server_kernel.value("str(calm.status)") in ("'completed'", "'cancelled'")
    assert server_kernel.value("6 * 7") == "42"


def test_client_values_display_like_magic_values(server_kernel: Kernel) -> None:
    server_kernel.run("from openruntime_jupyter import connect\nclient = connect()")
    assert server_kernel.run("client.submit('compute').wait()").value.startswith("✓ completed in ")
    assert server_kernel.run("client.tasks(limit=1)").value.startswith("1 of ")


def test_task_knows_its_notebook_and_shows_its_code(server_kernel: Kernel) -> None:
    assert "unknown" in error_of(server_kernel.run("%openruntime tasks notebook=this"))
    server_kernel.run("import os\n__vsc_ipynb_file__ = '/home/me/from code.ipynb'")
    try:
        assert server_kernel.run("%%openruntime --as of_code\nprint('of VS Code')").status == "ok"
        server_kernel.run("os.environ['JPY_SESSION_NAME'] = '/work/<b>of Jupyter</b>.ipynb'")
        assert server_kernel.run("%%openruntime --as of_jupyter --name 'Looked For'\nsecret = 'in the code'").status == "ok"
        listed = "[[task.name for task in found] for found in (tasks, mine)], {task.notebook for task in mine}"
        server_kernel.run("tasks = %openruntime tasks name='looked f'\nmine = %openruntime tasks notebook=this")
        assert server_kernel.value(listed) == "([['Looked For'], ['Looked For']], {'/work/<b>of Jupyter</b>.ipynb'})"
        server_kernel.run("os.environ['A_SETTING'] = 'not for display'\ndef twice(number):\n    return 2 * number")
        server_kernel.run("call = __import__('openruntime_jupyter').connect().submit_call(twice, 21)\ncall.wait()")
        shown = {name: server_kernel.run(name) for name in ("of_code", "of_jupyter", "call", "%openruntime show of_jupyter")}
    finally:
        server_kernel.run("del os.environ['JPY_SESSION_NAME'], __vsc_ipynb_file__, os.environ['A_SETTING']")
    text = {name: cell.shown()[0] for name, cell in shown.items()}
    assert "from from code.ipynb" in text["of_code"]
    for name in ("of_jupyter", "%openruntime show of_jupyter"):
        assert "secret = 'in the code'" in text[name]
        (html,) = shown[name].shown("text/html")
        assert "<details><summary>Code" in html
        assert "<b>" not in html
    assert "twice" in text["call"]
    assert "In[" in text["call"]
    assert "return 2 * number" in text["call"]
    assert "not for display" not in "".join(text.values())


def test_wanted_gpu_without_gpu_runs_on_cpu_with_note(kernel: Kernel) -> None:
    has_gpu = "gpu" in kernel.value("[device.type for device in get_ipython().run_line_magic('openruntime', 'devices')]")
    for line in ("%%openruntime --device gpu\n1", "%openruntime matrix_multiply size=8 --device gpu"):
        cell = kernel.run(line)
        assert cell.status == "ok"
        assert ("no GPU" in cell.stream("stderr")) is not has_gpu
    assert "no GPU" not in kernel.run("%%openruntime\n1").stream("stderr")
