"""The stop button on waits of the client in a cell: one line that says what became of the task."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pexpect  # type: ignore[import-untyped]
import pytest

from tests.notebook.conftest import Kernel, error_of
from tests.support import Home, wait_until

SETUP = """
import os, signal, sys, threading, time
from openruntime_jupyter import connect
from openruntime_jupyter.client import interruption
client = connect()

def nap(seconds):
    import time
    for _ in range(int(seconds * 20)):
        time.sleep(0.05)
    return seconds

def stop_when(holds):
    def press():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if holds():
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)
    threading.Thread(target=press).start()

def stop_when_running(name):
    stop_when(lambda: any(task.name == name for task in client.tasks(states=["running"]).tasks))
    return client.with_options(name=name)

def waits():
    if any(pulse.waits for pulse in interruption._pulses.values()):
        return True
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and not (frame.f_code.co_name == "wait" and "openruntime_jupyter" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None

def stop_when_waiting():
    stop_when(waits)
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


LATE = """
from openruntime_jupyter.schemas.endpoints import SUBMIT_TASK

class Late:
    'Backend that is interrupted once a submitted task has completed.'

    def __init__(self, backend):
        self.backend, self.pressed = backend, False

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def call(self, endpoint, *args, **keywords):
        answer = self.backend.call(endpoint, *args, **keywords)
        if endpoint is SUBMIT_TASK and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return answer

late = connect()
late.backend = Late(late.backend)
"""


def test_interrupt_after_completion_keeps_value(stopping: Kernel) -> None:
    assert stopping.run(LATE).status == "ok"
    cell = stopping.run("late.call(nap, 0)")
    assert "completed" in error_of(cell)
    task_id = re.search(r"task_\w+", error_of(cell))
    assert task_id is not None
    assert stopping.value(f"client.task('{task_id[0]}').result()") == "0"


def test_interrupt_of_result_keeps_task_running(stopping: Kernel) -> None:
    for wait in ("handle.result()", "await later"):
        stopping.run("handle = client.submit_call(nap, 600)\nlater = await client.aio.task(handle.id)")
        cell = stopping.run(f"stop_when_waiting()\n{wait}")
        assert cell.status == "error"
        assert len(error_of(cell).splitlines()) == 1
        assert "continues to run" in cell.error["evalue"]
        assert stopping.value("handle.status.terminal, str(handle.cancel().status)") == "(False, 'cancelled')"


def test_ctrl_c_cancels_awaited_call_in_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=nocolor"]
    terminal = pexpect.spawn(
        command[0], command[1:], env={**Home(tmp_path).environment(), "TERM": "dumb"}, cwd=tmp_path, encoding="utf-8", timeout=60
    )
    lines = (
        "import os, signal, time; from openruntime_jupyter import connect; client = connect()",
        "def wait(path): open(path, 'w').close(); time.sleep(600)",
        f"await client.aio.call(wait, {str(tmp_path / 'runs')!r})",
    )
    try:
        for line in lines:
            terminal.expect(r"In \[\d+\]: ")
            terminal.sendline(line)
        wait_until((tmp_path / "runs").exists, what="the task runs")
        terminal.sendintr()
        terminal.expect(r"CancelledError: task_\w+ was cancelled\r\n")
        terminal.expect(r"In \[\d+\]: ")
        terminal.sendline(
            "signal.getsignal(signal.SIGINT) is signal.default_int_handler, [str(task.status) for task in client.tasks().tasks]"
        )
        terminal.expect_exact("(True, ['cancelled'])")
        terminal.sendline("exit()")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)
