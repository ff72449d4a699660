"""Workers end with their runtime, for whatever reason it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import alive, wait_until

HOST = """
import asyncio, json, os, pathlib, sys
from openruntime_jupyter.engines.protocol import Job
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions

class Quiet:
    def started(self, worker): pass
    def progressed(self, progress): pass
    def displayed(self, item): pass
    def printed(self, stream, text): print(text, end="", flush=True)

async def main(folder, code, fork):
    engine = LocalEngine(LocalOptions(folder, folder))
    await engine.start()
    await engine.devices()
    if fork and os.fork() == 0:
        import time
        time.sleep(600)  # holds copies of the sockets
        os._exit(0)
    job = Job("task_1", "python", json.dumps({"code": code}).encode(), "device_0", "cpu", 0, None, 0, 1, "task_1.1")
    await engine.run(job, Quiet())

asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fork"))
"""

LONG_EVAL = """
import mlx.core as mx, os, subprocess
child = subprocess.Popen(["sleep", "600"])
a = mx.random.uniform(shape=(1500, 1500), key=mx.random.key(0))
for _ in range(20000):
    a = mx.tanh(a @ a)
print("in", os.getpid(), child.pid, flush=True)
mx.eval(a)
"""


@contextmanager
def host(folder: Path, code: str, *, fork: bool) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start a process that hosts an engine and runs `code`, wait until the code prints `in`, and yield all processes."""
    arguments = [sys.executable, "-c", HOST, str(folder), code, "fork" if fork else ""]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    children: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("in "):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        yield process, children
    finally:
        process.kill()
        for child in children:
            if alive(child):
                child.kill()
        process.communicate()


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a fork that holds the sockets"])
def test_busy_worker_and_its_children_end_with_their_runtime(tmp_path: Path, fork: bool) -> None:
    with host(tmp_path, LONG_EVAL, fork=fork) as (process, children):
        host_process = psutil.Process(process.pid)
        wait_until(lambda: len(host_process.children(recursive=True)) >= 3 + fork, 10.0, "the busy worker, its child, and the spare")
        children += [child for child in host_process.children(recursive=True) if child not in children]
        workers = [child for child in children if "openruntime_jupyter.worker" in child.cmdline() or child.name() == "sleep"]
        assert len(workers) >= 3
        process.kill()
        wait_until(lambda: not any(alive(worker) for worker in workers), 5.0, lambda: f"the end of {[w for w in workers if alive(w)]}")


def test_suspended_runtime_keeps_its_workers(tmp_path: Path) -> None:
    """A closed laptop or a debugger suspends the runtime. The parent is still alive, so the worker continues."""
    code = "import os, time\nprint('in', os.getpid(), flush=True)\ntime.sleep(600)"
    with host(tmp_path, code, fork=False) as (process, children):
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(AssertionError):
            wait_until(lambda: not all(alive(child) for child in children), 2.5)
        os.kill(process.pid, signal.SIGCONT)
