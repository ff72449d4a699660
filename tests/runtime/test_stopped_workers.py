"""Workers suspended by a signal or a debugger: no task waits endlessly for a worker that has not read it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter.engines.local import Attempt
from openruntime_jupyter.engines.worker_process import WorkerProcess
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import ended, pickled, runtime_in, submit, until, value

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process has not read")


def _who(ballast: bytes = b"") -> int:
    return os.getpid()


def _stops_itself() -> int:
    os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


def burst(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The parameters of a call of the one burst of these tests."""
    return {**pickled(function, *arguments), "burst": "one"}


async def stopped(pid: int) -> None:
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 60, "the stop")


async def stopped_idle_worker(runtime: Runtime) -> int:
    """Stop the idle worker that the next call of the burst gets; its pid."""
    pid: int = await value(runtime, await submit(runtime, "call", burst(_who)))
    os.kill(pid, signal.SIGSTOP)
    await stopped(pid)
    return pid


@ON_LINUX
@pytest.mark.parametrize("size", [0, 500_000], ids=["small", "larger than a socket holds"])
async def test_task_of_suspended_idle_worker_runs_on_another(tmp_path: Path, size: int) -> None:
    async with runtime_in(tmp_path) as runtime:
        pid = await stopped_idle_worker(runtime)
        task = await ended(runtime, await submit(runtime, "call", burst(_who, os.urandom(size))))
        assert (task.status, task.attempt) == ("completed", 1), task.failure
        assert await value(runtime, task.task_id) != pid
        await until(lambda: not psutil.pid_exists(pid), 60, "its end")


async def test_task_of_suspended_worker_fails_if_its_start_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerProcess, "unread", None)

    async with runtime_in(tmp_path) as runtime:
        await stopped_idle_worker(runtime)
        task = await ended(runtime, await submit(runtime, "call", burst(_who)))
        assert task.failure is not None
        assert task.failure.kind == "worker_died"
        assert "SIGSTOP" in str(task.error)
        assert await value(runtime, await submit(runtime, "call", burst(_who)))


@ON_LINUX
async def test_running_task_may_be_suspended_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool | None] = []
    look = Attempt.look

    def looking(self: Attempt) -> None:
        look(self)
        looks.append(self.worker.unread if self.worker is not None else None)

    monkeypatch.setattr(Attempt, "look", looking)

    async with runtime_in(tmp_path) as runtime:
        task_id = await submit(runtime, "call", pickled(_stops_itself))
        pid = await until(lambda: next((child.pid for child in psutil.Process().children() if child.status() == "stopped"), None))
        await until(lambda: False in looks, 60, "a look at what it has read")
        os.kill(pid, signal.SIGCONT)
        assert await value(runtime, task_id) == pid
