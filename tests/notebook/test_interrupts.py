"""The stop button on waits of the client in a cell: one line that says what became of the task."""

from __future__ import annotations

import pytest

from tests.notebook.conftest import Kernel, error_of

SETUP = """
import os, signal, threading, time
from openruntime_jupyter import connect
client = connect()

def nap(seconds):
    import time
    for _ in range(int(seconds * 20)):
        time.sleep(0.05)
    return seconds

def stop_when_running(name):
    def press():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any(task.name == name for task in client.tasks(states=["running"]).tasks):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)
    threading.Thread(target=press).start()
    return client.with_options(name=name)
"""


@pytest.fixture
def stopping(kernel: Kernel) -> Kernel:
    """Return a kernel with `nap` and `stop_when_running`."""
    assert kernel.run(SETUP).status == "ok"
    return kernel


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("call(nap, 600)", "KeyboardInterrupt"),
        ("map(nap, [600, 600])", "KeyboardInterrupt"),
        ("aio.call(nap, 600)", "CancelledError"),
        ("aio.map(nap, [600, 600])", "CancelledError"),
    ],
)
def test_interrupt_of_call_cancels_and_prints_one_line(stopping: Kernel, call: str, error: str) -> None:
    name = f"stopped {call}"
    cell = stopping.run(f"{'await ' if 'aio' in call else ''}stop_when_running({name!r}).{call}")
    assert cell.error["ename"] == error
    assert len(error_of(cell).splitlines()) == 1
    assert "cancelled" in cell.error["evalue"]
    states = f"{{str(task.status) for task in client.tasks().tasks if task.name == {name!r}}}"
    assert stopping.value(states) == "{'cancelled'}"


def test_interrupt_of_result_keeps_task_running(stopping: Kernel) -> None:
    for wait in ("handle.result()", "await (await client.aio.task(handle.id))"):
        stopping.run("handle = client.submit_call(nap, 600)")
        cell = stopping.run(f"print('waiting', flush=True)\n{wait}", lambda cell: "waiting" in cell.stream(), stopping.interrupt)
        assert cell.status == "error"
        assert len(error_of(cell).splitlines()) == 1
        assert "continues to run" in cell.error["evalue"]
        assert stopping.value("handle.status.terminal, str(handle.cancel().status)") == "(False, 'cancelled')"
