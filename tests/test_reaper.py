"""Test that a killed test run leaves no processes behind, and a completed one kills none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import alive, wait_until

RUN = """
import os, signal, subprocess, sys
from tests.reaper import watched

with watched():
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True)
    child.send_signal(signal.SIGSTOP)
    print(child.pid, flush=True)
    sys.stdin.read()
    child.returncode = 0
"""


@pytest.mark.parametrize("killed", [True, False])
def test_killed_run_leaves_no_processes(killed: bool) -> None:
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        if killed:
            run.kill()
        run.communicate()
    assert run.returncode == (-signal.SIGKILL if killed else 0)
    if killed:
        wait_until(lambda: not alive(child), what="end of the child")
    else:
        assert alive(child)
        child.kill()
