"""Spare workers, which save the next task the start of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from tests.runtimes import cell, ended, printed, runtime_in, says, submit, until

WAITS = "import time\nprint('in', flush=True)\ntime.sleep(600)"
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def idle(runtime: Runtime) -> list[str]:
    return [worker.name for worker in runtime.engine.workers() if worker.state == "idle"]


@pytest.mark.parametrize("spares", [1, 3])
async def test_configured_number_of_spares_is_kept(tmp_path: Path, spares: int) -> None:
    async with runtime_in(tmp_path, spare_workers=spares) as runtime:
        busy = await cell(runtime, WAITS)
        await says(runtime, busy, "in")
        await until(lambda: len(idle(runtime)) == spares, what="the spares")
        assert len(runtime.engine.workers()) == spares + 1
        await runtime.cancel(busy)


def test_one_spare_by_default() -> None:
    assert Settings().spare_workers == 1


async def test_built_in_operations_share_a_worker(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, spare_workers=0) as runtime:
        for _ in range(3):
            assert (await ended(runtime, await submit(runtime, "compute"))).status == "completed"
            assert [worker.name for worker in runtime.engine.workers()] == ["worker_1"]


@pytest.mark.parametrize("spares", [0, 1])
async def test_task_after_killed_worker_runs_in_another(tmp_path: Path, spares: int) -> None:
    async with runtime_in(tmp_path, spare_workers=spares) as runtime:
        first = await cell(runtime, "import os\nprint(os.getpid())")
        await ended(runtime, first)
        died = await ended(runtime, await cell(runtime, DIES))
        assert died.failure is not None
        assert died.failure.kind == "worker_died"
        second = await cell(runtime, "import os\nprint(os.getpid())")
        await ended(runtime, second)
        assert (await printed(runtime, first)).split() != (await printed(runtime, second)).split() != []
