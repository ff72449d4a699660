"""Tasks that damage or suspend their worker fail alone, and neither later tasks nor the lane are affected."""

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
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Task
from tests.runtimes import busy, cell, completed, ended, failed, pickled, runtime_in, submit, until, value


async def test_task_that_breaks_its_worker_fails_alone(runtime: Runtime) -> None:
    holds = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    breaks = "import openruntime_jupyter.worker.runner as t\ndef fails(*_, **__): raise RuntimeError('broken')\nt.describe = fails\n1 / 0"
    await completed(runtime, await cell(runtime, holds))
    failure = await failed(runtime, await cell(runtime, breaks))
    assert (failure.kind, failure.exit_code) == ("worker_died", 70)
    assert "RuntimeError: broken" in (failure.last_output or "")


async def test_unneeded_worker_held_by_thread_is_ended(tmp_path: Path) -> None:
    holds = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    async with runtime_in(tmp_path, cpu_slots=3, idle_worker_seconds=0.2) as runtime:
        await ended(runtime, await cell(runtime, holds))
        for task_id in [await busy(runtime) for _ in range(3)]:
            await runtime.cancel(task_id)
        await until(lambda: len(runtime.engine.workers()) <= 1, 30, "the end of the workers beyond one")


async def test_invalid_frame_ends_worker_with_reason(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    speaks = "from openruntime_jupyter.current_task import current\nsend = current()._send.__self__._channel.send\n"
    nonsense = {
        "no JSON": "send(13, b'{' * 100)",
        "a field is missing": "send(13, b'{}')",
        "too large": "send(13, b' ' * 20_000_000)",
        "an unknown kind": "send(99, b'{}')",
    }
    for what, code in nonsense.items():
        failure = await failed(runtime, await cell(runtime, f"{speaks}{code}\nimport time; time.sleep(600)"))
        assert failure.kind == "worker_died", what
        assert "it broke the protocol" in failure.message, (what, failure.message)
    await completed(runtime, await submit(runtime, "call"))
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def told(runtime: Runtime, code: str) -> Task:
    """Return the task of a cell that reports progress, as the history has it. The cells of a session share a process."""
    code = f"from openruntime_jupyter import progress\nimport math\nimport numpy as np\n{code}"
    task_id = await cell(runtime, code, session="progress")
    task = await ended(runtime, task_id)
    await runtime.list_tasks(TasksQuery())  # what was written behind is on disk by then
    runtime.tasks.forget(task_id)
    kept = await runtime.tasks.get(task_id)
    assert kept == task.model_copy(update={"parameters": kept.parameters})
    return kept


async def test_progress_accepts_all_kinds_of_numbers(runtime: Runtime) -> None:
    for code, wanted in {
        "progress(np.int64(3), np.float32(4))": (3, 4, None),
        "import mlx.core as mx\nprogress(mx.array(3), mx.array(4.5))": (3, 4.5, None),
        "progress(1, math.inf)": (1, None, None),
        "progress(1, 2)\nprogress(math.nan, 2)": (1, 2, None),
        "progress(10**400, 10**401)": None,
        "progress(2**80, 2**81)": (2.0**80, 2.0**81, None),
        "progress(1, 2, ValueError('half'))": (1, 2, "half"),
        "progress(1, 2, 'x' * 20_000_000)": (1, 2, "x" * 1000),
    }.items():
        task = await told(runtime, code)
        assert task.status == "completed", (code, task.error)
        progress = task.progress
        assert (None if progress is None else (progress.n, progress.total, progress.message)) == wanted, code
    for code in ("progress('3', 4)", "progress([3])", "progress(None)", "import mlx.core as mx\nprogress(mx.array([1, 2]))"):
        task = await told(runtime, code)
        assert (task.error or "").startswith("TypeError: progress() takes numbers"), (code, task.error)


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
async def test_task_of_suspended_idle_worker_runs_on_another(runtime: Runtime, size: int) -> None:
    pid = await stopped_idle_worker(runtime)
    task = await ended(runtime, await submit(runtime, "call", burst(_who, os.urandom(size))))
    assert (task.status, task.attempt) == ("completed", 1), task.failure
    assert await value(runtime, task.task_id) != pid
    await until(lambda: not psutil.pid_exists(pid), 60, "its end")


@pytest.mark.not_over("agent", "dask", reason="changes how worker processes of this process are watched")
async def test_task_of_suspended_worker_fails_if_its_start_is_unknown(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerProcess, "unread", None)
    monkeypatch.setattr(WorkerProcess, "left_frames", property(lambda self: False, lambda self, value: None), raising=False)
    await stopped_idle_worker(runtime)
    failure = await failed(runtime, await submit(runtime, "call", burst(_who)))
    assert failure.kind == "worker_died"
    assert "SIGSTOP" in failure.message
    assert await value(runtime, await submit(runtime, "call", burst(_who)))


@ON_LINUX
@pytest.mark.not_over("agent", "dask", reason="changes how worker processes of this process are watched")
async def test_running_task_may_be_suspended_and_continued(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool | None] = []
    look = Attempt.kill_if_suspended

    def looking(self: Attempt) -> None:
        look(self)
        looks.append(self.worker.unread if self.worker is not None else None)

    monkeypatch.setattr(Attempt, "kill_if_suspended", looking)
    task_id = await submit(runtime, "call", pickled(_stops_itself))
    pid = await until(lambda: next((child.pid for child in psutil.Process().children() if child.status() == "stopped"), None))
    await until(lambda: False in looks, 60, "a look at what it has read")
    os.kill(pid, signal.SIGCONT)
    assert await value(runtime, task_id) == pid
