"""Workers that are killed before their task begins."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from openruntime_jupyter.engines.worker_process import START_ATTEMPTS
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import cell, completed, ended, failed, runtime_in, submit, until


def workers() -> list[psutil.Process]:
    """Return the running worker processes of this process."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "openruntime_jupyter.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@contextlib.asynccontextmanager
async def killing(number: int) -> AsyncIterator[list[int]]:
    """Kill the next `number` workers as they start; yield the list of their pids."""
    known, killed = {worker.pid for worker in workers()}, list[int]()

    async def kill() -> None:
        while len(killed) < number:
            for worker in workers():
                if worker.pid not in known and len(killed) < number:
                    known.add(worker.pid)
                    worker.send_signal(signal.SIGKILL)
                    killed.append(worker.pid)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()


async def take_first_worker(runtime: Runtime) -> None:
    """Run a task in the worker that reported the devices, so that the next one starts a process."""
    await completed(runtime, await cell(runtime, "pass"))


@pytest.mark.parametrize("number", [1, START_ATTEMPTS - 1])
async def test_task_gets_another_worker_if_its_worker_is_killed_at_the_start(runtime: Runtime, number: int) -> None:
    await take_first_worker(runtime)
    async with killing(number) as killed:
        task = await ended(runtime, await cell(runtime, "pass"))
    assert len(killed) == number
    assert (task.status, task.attempt) == ("completed", 1), task.failure


async def test_workers_that_are_always_killed_fail_the_task(runtime: Runtime) -> None:
    await take_first_worker(runtime)
    async with killing(START_ATTEMPTS):
        failure = await failed(runtime, await cell(runtime, "pass", retries=3))
    assert failure.kind == "not_started"
    assert "killed by signal 9" in failure.message


async def test_devices_are_found_though_the_first_worker_is_killed(tmp_path: Path) -> None:
    async with killing(1) as killed, runtime_in(tmp_path) as runtime:
        await completed(runtime, await cell(runtime, "pass"))
        assert killed


async def test_task_gets_another_worker_if_its_worker_is_killed_before_it_reads_the_job(tmp_path: Path) -> None:
    others = workers()
    async with runtime_in(tmp_path) as runtime:
        assert (await ended(runtime, await submit(runtime, "compute"))).status == "completed"
        (worker,) = (each for each in workers() if each not in others)
        worker.suspend()
        task_id = await submit(runtime, "compute")
        await until(lambda: runtime.lanes.running, 10, "the start of the task")
        await asyncio.sleep(0.1)  # until the job is sent
        worker.kill()
        task = await ended(runtime, task_id)
        assert (task.status, task.attempt) == ("completed", 1), task.failure
