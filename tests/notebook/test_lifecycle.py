"""Shutdown of kernels and servers with running tasks; and other front ends than JupyterLab."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from openruntime_jupyter.notebook.run.follow import Interrupts
from tests.ai.provider_server import ProviderServer
from tests.notebook.conftest import Cell, Kernel, error_of, of_provider, of_server, running_kernel
from tests.support import STANDALONE, Home, alive, running_server, wait_until

BUSY = "%%openruntime --bg --as job --name endless\nimport time\nprint('it runs', flush=True)\nwhile True:\n    time.sleep(0.01)"


def descendants(kernel: Kernel) -> list[psutil.Process]:
    return psutil.Process(kernel.pid).children(recursive=True)


@pytest.mark.parametrize("how", ["killed", "left by exit"])
def test_a_kernel_that_hosts_its_runtime_leaves_no_process_behind(tmp_path: Path, how: str) -> None:
    with running_kernel(Home(tmp_path)) as kernel:
        kernel.run(BUSY)
        wait_until(lambda: "running" in kernel.value("str(job.status)"), 20, "the task runs")
        left = descendants(kernel)
        assert left
        if how == "killed":
            os.kill(kernel.pid, signal.SIGKILL)
        else:
            kernel.client.execute("exit()")
        wait_until(lambda: not [process for process in left if alive(process)], 20, "its workers end")


def test_kernel_restart_without_server_interrupts_tasks(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_kernel(home) as kernel:
        assert "device_0" in kernel.run("%openruntime devices").value, "the first command waits for the start"
        kernel.run(BUSY)
        wait_until(lambda: "it runs" in kernel.value("job.output.stdout"), 20, "it prints")
        task_id = kernel.value("job.id").strip("'")
        left = descendants(kernel)
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60)
        wait_until(lambda: not [process for process in left if alive(process)], 20, "its workers end")
        kernel.run("%load_ext openruntime_jupyter")
        assert "interrupted" in kernel.run("%openruntime tasks").value
        cell = kernel.run(f"%openruntime result {task_id}")
        assert cell.error["ename"] == "TaskInterrupted"


def test_kernel_restart_leaves_running_cell_on_server(tmp_path: Path) -> None:
    home = Home(tmp_path)
    go = tmp_path / "go"
    code = f"""%%openruntime --name train --out answer
import os, time
print('it runs', flush=True)
while not os.path.exists({os.fspath(go)!r}):
    time.sleep(0.01)
answer = 42
"""
    with running_server(home) as server, running_kernel(home, of_server(server)) as kernel:
        kernel.client.execute(code)
        while "it runs" not in kernel.client.get_iopub_msg(timeout=60)["content"].get("text", ""):
            pass
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60)
        (told,) = kernel.run("%load_ext openruntime_jupyter").shown()
        assert told.startswith("1 task of this notebook is still running:\n  train (running): ")
        task_id = told.split("%openruntime wait ")[1].split("`")[0]
        go.touch()
        kernel.run(f"from openruntime_jupyter import connect\nended = connect().task('{task_id}').wait(30)")
        assert kernel.value("str(ended.status)") == "'completed'"
        (told,) = kernel.run("%reload_ext openruntime_jupyter").shown()
        assert told.startswith("1 task of this notebook finished while you were away:\n  train (completed in ")
        assert f"%openruntime result {task_id} --set" in told
        assert kernel.run(f"%openruntime result {task_id} --set").status == "ok"
        assert kernel.value("answer") == "42"
        assert kernel.run("%reload_ext openruntime_jupyter").outputs == [], "it is reported once"


WAITING = """
import os
from openruntime_jupyter import connect

def wait(number):
    import os, time
    while not os.path.exists('go'):
        time.sleep(0.01)
    return number

client = connect()
"""


@pytest.mark.parametrize("calls", [("call(wait, 7)", "map(wait, [7, 8], chunk_size=1)"), ("aio.call(wait, 7)", "aio.map(wait, [7, 8])")])
def test_kernel_restart_leaves_running_calls_on_server(tmp_path: Path, calls: tuple[str, ...]) -> None:
    home, config = Home(tmp_path), {"OpenRuntimeApp": {"cpu_slots": 2}}
    with running_server(home, config=config) as server, running_kernel(home, of_server(server)) as kernel:
        for call in calls:

            def in_state(state: str, name: str = call) -> bool:
                return {task["status"] for task in server.get("/tasks")["tasks"] if task["name"] == name} == {state}

            kernel.run(WAITING)
            kernel.client.execute(f"{'await ' if 'aio' in call else ''}client.with_options(name={call!r}).{call}")
            wait_until(partial(in_state, "running"), 30, "they run")
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60)
            (told,) = kernel.run("%load_ext openruntime_jupyter").shown()
            assert "of this notebook" in told, call
            assert call in told
            (tmp_path / "go").touch()
            wait_until(partial(in_state, "completed"), 30, "they are not cancelled")
            (tmp_path / "go").unlink()
            kernel.run("%reload_ext openruntime_jupyter")


def test_card_of_background_task_follows_it_after_its_cell(kernel: Kernel, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"import os, time\nwhile not os.path.exists({os.fspath(go)!r}):\n    time.sleep(0.01)\nx = 7"
    cell = kernel.run(f"%%openruntime --bg --as job --out x\n{wait}")
    assert re.search(r"as of \d+ \w+ \d\d:\d\d", cell.line)
    kernel.shows_later(cell, "● running")
    go.touch()
    final = kernel.shows_later(cell, "✓ completed in ")
    assert "as of" not in final
    assert "as of" not in cell.shown("text/html")[0]
    assert kernel.run("%openruntime result job --set").status == "ok"
    assert kernel.value("x") == "7"
    assert "no --out variables" in error_of(kernel.run("%openruntime matrix_multiply size=8\n%openruntime result _openruntime --set"))


def test_saved_notebook_has_last_state_of_background_tasks(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sources = (
        "%load_ext openruntime_jupyter",
        "%%openruntime --bg --as quick\nimport os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)",
        BUSY,
        "open('go', 'w').close()\nended = quick.wait()",
        "job",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": os.fspath(tmp_path)}}).execute(
        env=home.environment()
    )
    shown = [[output["data"] for output in cell.outputs] for cell in notebook.cells]
    (quick,), (endless,), (again,) = shown[1], shown[2], shown[4]
    assert "✓ completed in " in quick["text/plain"]
    assert "as of" not in quick["text/html"]
    for card in (endless, again):
        for text in (card["text/plain"], card["text/html"]):
            assert re.search(r"as of \d+ \w+ \d\d:\d\d", text)


def test_server_crash_ends_cell_with_advice(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_server(home) as server, running_kernel(home, of_server(server)) as kernel:

        def it_runs(cell: Cell) -> bool:
            return "it runs" in cell.stream()

        cell = kernel.run(BUSY.replace("--bg --as job ", ""), it_runs, server.kill)
        assert cell.error["ename"] == "NotConnected"
        assert "restart Jupyter Server" in cell.error["evalue"]
        assert "`%openruntime wait task_" in cell.error["evalue"]
        assert len("\n".join(cell.error["traceback"]).splitlines()) == 1
        assert "unreachable" in cell.line
        again = kernel.run("%openruntime status")
        assert again.error["ename"] == "NotConnected"
        assert "connect('embedded')" in again.error["evalue"]
        assert kernel.value("6 * 7") == "42"


def test_server_stop_ends_cell_with_task_state_or_advice(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_server(home, STANDALONE) as server, running_kernel(home) as kernel:

        def stop() -> None:
            server.stop()

        cell = kernel.run(BUSY.replace("--bg --as job ", ""), lambda cell: "it runs" in cell.stream(), stop)
        # The last message was the end of the task, or that the server is stopping.
        if cell.error["ename"] != "TaskInterrupted":
            assert cell.error["ename"] == "NotConnected"
            assert "`%openruntime wait task_" in cell.error["evalue"]
            assert "unreachable" in cell.line
        assert kernel.value("_openruntime.id") in kernel.value(
            "[task.task_id for task in get_ipython().run_line_magic('openruntime', 'tasks')]"
        )


def test_kernel_reports_switch_to_embedded_runtime(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_server(home, STANDALONE) as server, running_kernel(home) as kernel:
        cell = kernel.run(BUSY.replace("--bg --as job ", ""), lambda cell: "it runs" in cell.stream(), server.kill)
        assert cell.error["ename"] == "NotConnected"
        # The last known state may be older than the last output.
        assert " · endless · unreachable, last known state" in kernel.value("_openruntime")
        ended = kernel.run("%openruntime tasks")
        assert f"{server.url} is unreachable: from now on this kernel hosts its own tasks" in ended.stream("stderr")
        assert kernel.run("%openruntime tasks").stream("stderr") == "", "it is reported once"
        assert kernel.value("[(str(task.status), task.execution_time) for task in _]") == "[('interrupted', None)]", (
            "the run time is unknown"
        )


def test_failing_cell_stops_nbclient_and_says_its_error_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    divide = "%%openruntime\ndef divide(n):\n    return n / 0\ndivide(1)"
    sources = ("%load_ext openruntime_jupyter", divide, "reached = True")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    runner = NotebookClient(notebook, timeout=60, kernel_name="python3")
    with pytest.raises(CellExecutionError) as caught:
        runner.execute(env=home.environment())
    log = re.sub(r"\x1b\[\d*m", "", str(caught.value))
    frames = "In [2], line 4\n    divide(1)\nIn [2], line 3, in divide\n    return n / 0\n"
    assert f"{frames}TaskFailed: ZeroDivisionError: division by zero (task_" in log
    assert notebook.cells[2].outputs == []
    assert notebook.cells[2].execution_count is None
    (line, card, error) = notebook.cells[1].outputs
    assert "failed after" in line["data"]["text/plain"]
    assert card["data"]["text/plain"].startswith("In [2], line 3, in divide\nFull traceback: ")
    assert "%openruntime fix" not in card["data"]["text/plain"], "no kernel has the error any more"
    shown = [line["data"]["text/plain"], card["data"]["text/plain"], *error["traceback"]]
    assert "".join(shown).count("division by zero") == 1


def test_plain_ipython_shows_text(tmp_path: Path, provider: ProviderServer) -> None:
    code = """
ip = get_ipython()
ip.run_line_magic('load_ext', 'openruntime_jupyter')
ip.user_ns['n'] = 6
ip.run_cell_magic('openruntime', '--in n --out answer --name product', 'answer = n * 7; print(answer)')
print(ip.user_ns['answer'] + 1)
print(ip.display_formatter.formatters['text/plain'](ip.run_line_magic('openruntime', 'status')))
reply = ip.run_cell_magic('openruntime', 'ai', 'a slow hello')
print(reply.text == 'You said: a slow hello')
"""
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--quick", "--no-banner", "--colors=nocolor", "-c", code],
        env=Home(tmp_path).environment(of_provider(provider)),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("42\n43\nOpenRuntime 2")
    assert "device_0" in done.stdout
    assert done.stdout.endswith("You said: a slow hello\nTrue\n")
    assert done.stderr.count("completed in") == 2, "each line is shown once, at the end"


def test_cell_on_another_thread_ignores_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    counted: list[int] = []

    def enter() -> None:
        with Interrupts() as interrupts:
            counted.append(interrupts.count)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(5)
    assert counted == [0]
    assert signal.getsignal(signal.SIGINT) is before


def test_third_interrupt_always_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    woken: list[int] = []
    with Interrupts(lambda: woken.append(1)) as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(woken) == 3
    assert signal.getsignal(signal.SIGINT) is before
