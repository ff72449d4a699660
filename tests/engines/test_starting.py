"""Workers that cannot be started, die while idle, or lose their folder fail tasks with a message and never block."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openruntime_jupyter.engines.failures import not_started
from openruntime_jupyter.engines.local import LocalEngine
from openruntime_jupyter.errors import EngineError, InterpreterError, Unavailable
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import ENDLESS, busy, cell, completed, ended, failed, python_that, runtime_in, submit, until


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd").iterdir())


@contextmanager
def no_more_descriptors_than(spare: int) -> Iterator[None]:
    """Limit the number of further files that this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(64, descriptors() + 20), hard))
    fillers: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


@pytest.mark.parametrize("spare", [3, 8])
async def test_task_fails_with_advice_when_files_run_out(tmp_path: Path, spare: int) -> None:
    async with runtime_in(tmp_path, cpu_slots=8, spare_workers=1) as runtime:
        holders = [await busy(runtime)]
        await until(lambda: sum(worker.state == "idle" for worker in runtime.engine.workers()) == 1, 20, "a spare")
        with no_more_descriptors_than(spare):
            before = descriptors()
            while not (failed := [task for task in [await runtime.tasks.get(each) for each in holders] if task.status == "failed"]):
                holders.append(await cell(runtime, ENDLESS))
                await asyncio.sleep(0.05)
                assert len(holders) < 200
            assert "Too many open files. Raise the limit of open files (`ulimit -n`)" in (failed[0].error or "")
            # The watchdog opens two more, for the former spare.
            assert descriptors() <= before + 2
        for task_id in holders:
            await runtime.cancel(task_id)
        await completed(runtime, await submit(runtime, "call"))


def test_start_errors_have_advice() -> None:
    for number, kind, advice in (
        (errno.ENOENT, InterpreterError, "path of a Python"),
        (errno.EACCES, InterpreterError, "path of a Python"),
        (errno.EMFILE, EngineError, "ulimit -n"),
        (errno.EAGAIN, EngineError, "ulimit -u"),
        (errno.ENOMEM, EngineError, "memory"),
        (errno.EIO, EngineError, "try again"),
    ):
        error = not_started("/a/python", OSError(number, os.strerror(number)))
        assert type(error) is kind
        assert advice in str(error)
        assert os.strerror(number) in str(error)
        assert "/a/python" in str(error)


async def test_dead_idle_worker_gets_no_task(runtime: Runtime) -> None:
    await ended(runtime, await submit(runtime, "compute"))
    for _ in range(2):
        await until(lambda: any(worker.state == "idle" for worker in runtime.engine.workers()), 20, "an idle worker")
        dead = list(runtime.engine._workers)  # type: ignore[attr-defined]
        for worker in dead:
            os.kill(worker.pid, signal.SIGKILL)
        while any(worker.alive for worker in dead):
            os.sched_yield()
        await completed(runtime, await submit(runtime, "compute"))


async def test_removed_temporary_folder_is_created_again(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        await ended(runtime, await submit(runtime, "call"))
        large = {"code": "n = len(text)", "inputs": {"text": "x" * 2_000_000}}
        for parameters in ({"code": "1"}, large, {"code": "1", "isolate": True}):
            await until(lambda: all(worker.state == "idle" for worker in runtime.engine.workers()), 20, "idle workers")
            shutil.rmtree(tmp_path / "tmp")
            await completed(runtime, await submit(runtime, "python", parameters))


async def test_failed_parameters_file_keeps_worker(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, spare_workers=1) as runtime:
        await until(lambda: [worker.state for worker in runtime.engine.workers()] == ["idle"], 20, "a spare")
        before = {worker.name for worker in runtime.engine.workers()}
        folder = tmp_path / "tmp"
        shutil.rmtree(folder)
        folder.write_text("no folder")
        for _ in range(3):
            task = await ended(runtime, await submit(runtime, "python", {"code": "1", "inputs": {"text": "x" * 2_000_000}}))
            assert task.status == "failed"
            assert str(folder) in (task.error or "")
        assert {worker.name for worker in runtime.engine.workers()} == before
        folder.unlink()
        await completed(runtime, await submit(runtime, "call"))


async def test_failed_first_worker_is_retried_on_request(tmp_path: Path) -> None:
    repaired = tmp_path / "repaired"
    interpreter = python_that(tmp_path, f"[ -e {repaired} ] || exit 3\n")
    async with runtime_in(tmp_path / "data", interpreter=interpreter) as runtime:
        for _ in range(2):
            with pytest.raises(Unavailable, match="before it was ready"):
                await submit(runtime, "call")
        assert runtime.health().status == "degraded"
        repaired.touch()
        await completed(runtime, await submit(runtime, "call"))
        assert runtime.health().status == "healthy"


BROKEN = """
import select
import sys

print("half of it is missing", file=sys.stderr)
select.select([int(sys.argv[1])], [], [])  # until its first task has come
raise ModuleNotFoundError("the other half")
"""


async def test_output_before_first_task_is_in_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "pydantic_core.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "path"))

    async with runtime_in(tmp_path) as runtime:
        engine = runtime.engine
        assert isinstance(engine, LocalEngine)
        await until(lambda: any("half of it" in worker.stderr.tail for worker in engine._workers), 30, "the worker to speak")
        failure = await failed(runtime, await submit(runtime, "call"))
        assert "half of it is missing" in (failure.last_output or "")
        assert "the other half" in (failure.last_output or "")
