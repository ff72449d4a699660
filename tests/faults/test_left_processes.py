"""Processes that tasks started end with their worker, or with the next runtime if worker and runtime were killed together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from openruntime_jupyter.engines import process_groups
from openruntime_jupyter.engines.process_groups import MARKER, ProcessGroups, end_left_groups
from tests.support import STANDALONE, Home, alive, running_server, wait_until

CHILDREN = """
import os, subprocess, sys
nap = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(nap), subprocess.Popen(nap)]
print("in", os.getpid(), *(child.pid for child in children), flush=True)
import time
time.sleep(600)
"""
NAP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_next_runtime_ends_processes_whose_worker_and_runtime_were_killed_together(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with running_server(home, STANDALONE) as first:
        task_id = first.submit("python", {"code": CHILDREN}, wait=False)["task_id"]
        output = wait_until(lambda: first.get(f"/tasks/{task_id}/output")["items"], 30, "the children")
        worker, *children = [psutil.Process(int(pid)) for pid in output[0]["text"].split()[1:]]
        first.process.send_signal(signal.SIGSTOP)  # or it would end the group of the dead worker
        worker.kill()
        first.kill()
        wait_until(lambda: not alive(worker), 5, "the end of the worker")
        assert all(map(alive, children)), "nothing is left to end them"
        with running_server(home, STANDALONE) as second:
            wait_until(lambda: not any(map(alive, children)), 10, "the end of the children")
            assert second.get("/health")["status"] == "healthy"


def test_worker_ends_its_group_if_only_its_data_channel_closes(tmp_path: Path) -> None:
    data, their_data = socket.socketpair()
    control, their_control = socket.socketpair()
    descriptors = [their_data.fileno(), their_control.fileno()]
    command = [sys.executable, "-m", "openruntime_jupyter.worker", *map(str, descriptors), "1", str(os.getpid()), "marker", "none", "", ""]
    with control, subprocess.Popen(command, pass_fds=descriptors, start_new_session=True, cwd=tmp_path) as worker:
        their_data.close()
        their_control.close()
        with data:
            assert data.recv(1), "its first message"
        assert worker.wait(20) == -signal.SIGKILL, "a signal to its group, and so to itself"


@contextmanager
def group(*, marked: bool) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Start a session, and yield its leader and another member."""
    code = f"import subprocess, time; print(subprocess.Popen({NAP!r}).pid, flush=True); time.sleep(600)"
    environment = {**os.environ, **({MARKER: "1"} if marked else {})}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, env=environment, text=True) as leader:
        assert leader.stdout is not None
        member = psutil.Process(int(leader.stdout.readline()))
        try:
            yield leader, member
        finally:
            leader.kill()
            if alive(member):
                member.kill()


def leave_record(folder: Path, pid: int, started: str | None = None) -> None:
    """Leave the record of a dead runtime, with another start time if `started` is given."""
    groups = ProcessGroups(folder)
    groups.add(pid)
    (path,) = folder.iterdir()
    content = path.read_text()
    groups.close()
    boot, _, found = content.split()
    path.write_text(f"{boot} {pid} {started or found}\n")


@pytest.mark.parametrize("started", [None, "1"], ids=["its worker", "another process with the pid of a worker"])
def test_process_is_ended_only_with_the_recorded_start_time(tmp_path: Path, started: str | None) -> None:
    with group(marked=True) as (leader, member):
        leave_record(tmp_path, leader.pid, started)
        assert end_left_groups(tmp_path) == (2 if started is None else 0)
        assert alive(member) == (started is not None)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("marked", [True, False], ids=["of a worker", "of another program"])
def test_group_without_leader_is_ended_only_if_a_worker_started_it(tmp_path: Path, marked: bool) -> None:
    with group(marked=marked) as (leader, member):
        leave_record(tmp_path, leader.pid)
        leader.kill()
        leader.wait()
        end_left_groups(tmp_path)
        assert alive(member) == (not marked)


def test_record_of_living_runtime_is_left_and_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_groups, "COMPACT_AT", 3)
    groups = ProcessGroups(tmp_path)
    with group(marked=True) as (leader, member):
        groups.add(leader.pid)
        for _ in range(5):
            with subprocess.Popen([sys.executable, "-c", ""]) as ended:
                groups.add(ended.pid)
        (path,) = tmp_path.iterdir()
        assert len(path.read_text().splitlines()) <= 3
        assert str(leader.pid) in path.read_text()
        assert end_left_groups(tmp_path) == 0
        assert alive(member)
    groups.close()
    assert list(tmp_path.iterdir()) == []
