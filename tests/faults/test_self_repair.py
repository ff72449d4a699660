"""A runtime repairs itself, and takes over from runtimes that have died, without a restart."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from openruntime_jupyter.engines import worker_process
from openruntime_jupyter.runtime import runtime as runtime_module
from tests.runtimes import busy, cell, ended, failed, runtime_in, until
from tests.support import STANDALONE, Home, running_server, wait_until

GROW = "import time\nkept = bytearray(600_000_000)\nfor at in range(0, len(kept), 4096): kept[at] = 1\ntime.sleep(600)"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_watchdog_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = list(threading.enumerate())

    def watchdogs() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "openruntime-watchdog" and thread not in others]

    async with runtime_in(tmp_path) as runtime:
        (first,) = watchdogs()
        with monkeypatch.context() as broken:
            broken.setattr(worker_process.Watchdog, "_read_all", lambda self: 1 / 0)
            running = await busy(runtime)
            await until(lambda: not first.is_alive(), 10, "its end")
        await until(watchdogs, 10, "another one")
        await runtime.cancel(running)
        failure = await failed(runtime, await cell(runtime, GROW, memory_limit=300_000_000))
        assert failure.kind == "memory"


async def test_living_runtime_takes_over_tasks_of_a_killed_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "RECOVERY_SECONDS", 0.2)
    home = Home(tmp_path / "home")
    config = {"OpenRuntimeApp": {"cpu_slots": 1}}
    with running_server(home, STANDALONE, config=config) as server:
        async with runtime_in(home.data_dir) as runtime:
            server.submit("python", {"code": "import time; time.sleep(600)"}, wait=False)
            waiting = server.submit("python", {"code": "print('here')"}, wait=False)["task_id"]
            wait_until(lambda: server.get(f"/tasks/{waiting}")["status"] == "pending", 10, "the queue")
            await asyncio.get_running_loop().run_in_executor(None, server.kill)
            task = await ended(runtime, waiting, 20)
            assert (task.status, task.runtime) == ("completed", runtime.id)
