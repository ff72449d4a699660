"""Spare workers, which save the next task the start of a worker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.engines import pool as pools
from openruntime_jupyter.engines.pool import Pool
from openruntime_jupyter.engines.protocol import Job
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import busy, completed, runtime_in, submit, until


def idle(runtime: Runtime) -> list[str]:
    return [worker.name for worker in runtime.engine.workers() if worker.state == "idle"]


@pytest.mark.parametrize("spares", [1, 3])
async def test_configured_number_of_spares_is_kept(tmp_path: Path, spares: int) -> None:
    async with runtime_in(tmp_path, spare_workers=spares) as runtime:
        holder = await busy(runtime)
        await until(lambda: len(idle(runtime)) == spares, what="the spares")
        assert len(runtime.engine.workers()) == spares + 1
        await runtime.cancel(holder)


async def test_built_in_operations_share_a_worker(runtime: Runtime) -> None:
    for _ in range(3):
        await completed(runtime, await submit(runtime, "compute"))
        assert [worker.name for worker in runtime.engine.workers()] == ["worker_1"]


class FakeWorker:
    """Worker that is ready at once, as far as a pool sees it."""

    def __init__(self) -> None:
        self.alive = self.fresh = True
        self.lane: str | None = None
        self.burst = self.environment = None
        self.variables: tuple[tuple[str, str | None], ...] = ()
        self.idle_since = 0.0

    async def ready(self, seconds: float) -> None:
        """Return at once."""


async def test_spare_used_by_built_in_operations_is_replaced_once_they_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SPARE_SECONDS", 0.1)
    job = Job("task_1", "compute", b"{}", "device_0", "cpu", 0, None, 0, 1, "task_1.1")
    started: list[FakeWorker] = []
    busy: list[tuple[Any, Job]] = []

    def start(*_: Any) -> Any:
        started.append(FakeWorker())
        return started[-1]

    pool = Pool("device_0", "python", start, lambda worker: None, 60.0, busy=lambda: busy)
    pool.adopt(start())
    used: set[Any] = set()
    begun = time.monotonic()
    while time.monotonic() - begun < 0.5:
        worker = pool.take_idle(job)
        assert worker is not None
        used.add(worker)
        worker.fresh = False
        busy.append((worker, job))
        await asyncio.sleep(0.15)  # longer than the pause
        busy.clear()
        pool.give_back(worker)
    assert (len(used), len(started)) == (1, 1)
    while len(started) < 2:
        await asyncio.sleep(0.01)
    for _ in range(20):
        worker = pool.take_idle(job)
        assert worker is not None
        assert worker in used
        pool.give_back(worker)
    await asyncio.sleep(0.3)
    assert len(started) == 2, "a reused worker needs no new spare"
    pool.close()
