"""Embedded runtime: started at first use, shared by all clients, stopped with the process."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.errors import NotConnected, StorageUnavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import GET_HEALTH
from openruntime_jupyter.schemas.tasks import Task
from tests.support import Home, alive, slowness, wait_until

PROGRAM = """
import sys, time
from openruntime_jupyter import connect
client = connect("embedded")
assert client.call(lambda: 42) == 42
handle = client.submit_call(lambda: __import__("time").sleep(60))
while str(handle.status) != "running":
    time.sleep(0.01)
print("ready", flush=True)
if sys.argv[1] == "end":
    sys.exit(0)
if sys.argv[1] == "raise":
    raise SystemError("on purpose")
time.sleep(60)
"""


def start(home: Home, how: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a program that hosts a runtime with a running task; return it with the runtime's processes."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, how]
    process = subprocess.Popen(command, env=home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process, psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 1), ("stay", -signal.SIGTERM), ("stay", -signal.SIGKILL)])
def test_a_process_that_ends_takes_its_workers_along(tmp_path: Path, how: str, code: int) -> None:
    process, children = start(Home(tmp_path), how)
    if code < 0:
        assert children
        process.send_signal(-code)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("on purpose" in complaint) if how == "raise" else complaint == ""
    wait_until(lambda: not [child for child in children if alive(child)], 6, "the workers end")


def test_nothing_is_started_before_it_is_used(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path / "data", embedded=True))
    assert not (tmp_path / "data").exists()
    backend.stop()
    assert not (tmp_path / "data").exists()


def test_a_stopped_runtime_starts_again_at_the_next_use_and_remembers(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True))
    client = Client(backend)
    handle = client.submit_call(lambda: 42)
    assert handle.result(timeout=30) == 42
    backend.stop()
    assert client.task(handle.id).result() == 42
    backend.stop()


def test_whoever_waits_while_the_runtime_stops_is_told(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True))

    def work() -> None:
        import time

        from openruntime_jupyter import progress

        progress(1)
        time.sleep(60)

    handle = Client(backend).submit_call(work)
    ends: list[Task | NotConnected] = []

    def wait() -> None:
        try:
            ends.append(handle.wait())
        except NotConnected as problem:
            ends.append(problem)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: handle.progress, 20, "the task runs")
    backend.stop()
    waiter.join(10)
    assert not waiter.is_alive()
    assert len(ends) == 1
    assert isinstance(ends[0], NotConnected) or ends[0].status == "interrupted", ends[0].failure
    backend.stop()


def test_who_only_looks_at_what_it_hears_does_not_start_a_stopped_runtime_again(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True))
    hears, stopped, answers = threading.Event(), threading.Event(), queue.SimpleQueue[str]()

    def look(message: dict[str, Any]) -> None:
        if message["type"] == "metrics":
            hears.set()
            stopped.wait(60)
            try:
                answers.put(backend.call(GET_HEALTH).status)
            except NotConnected as problem:
                answers.put(str(problem))

    with backend.watch(["metrics"], look):
        assert hears.wait(60)
        backend.stop()
        stopped.set()
        assert "was stopped" in answers.get(timeout=60)
        assert not backend.started
        assert backend.call(GET_HEALTH).status in ("starting", "healthy"), "whoever uses it starts it"
        wait_until(lambda: "was stopped" not in answers.get(timeout=60), what="the figures of the new one")
    backend.stop()


def test_stopping_takes_no_longer_than_its_deadline(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True))

    def stubborn() -> None:
        import contextlib
        import signal
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(1)

    handle = Client(backend).submit_call(stubborn)
    wait_until(lambda: handle.status == "running", 20, "the task runs")
    soon, started = 5 * slowness(), time.monotonic()
    backend.stop(deadline=3)
    assert time.monotonic() - started < soon


def test_no_writable_folder_at_all_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    backend = EmbeddedBackend(Settings(data_dir=tmp_path / "file", embedded=True))
    before = set(threading.enumerate())
    with pytest.raises(StorageUnavailable, match="file"):
        backend.call(GET_HEALTH)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread not in before], 5, "its threads end")


def test_its_label_is_the_notebooks_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/my work.ipynb")
    assert EmbeddedBackend()._settings.label == "my work.ipynb"
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert EmbeddedBackend()._settings.label == f"process {os.getpid()}"
