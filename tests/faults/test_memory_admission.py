"""Tasks whose needs are known only from their graph wait for the memory that other tasks have been given."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openruntime_jupyter.errors import gigabytes
from openruntime_jupyter.memory import Machine, Memory
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import completed, ended, runtime_in, submit

TOTAL = 2_000_000_000
CHAIN = {"expression": f"sum(a{' + 1' * 60})", "inputs": {"a": {"random": [2500, 2000]}}}
"""Graph with 60 arrays of 20 MB, of which MLX keeps few at a time."""


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runtimes see a machine with 2 GB."""
    monkeypatch.setattr(Machine, "memory", lambda self: Memory(TOTAL, TOTAL - 100_000_000))


async def overlaps(runtime: Runtime, seen: set[str]) -> None:
    """Note why tasks wait, and check the memory that running tasks are known to need."""
    while True:
        running = [entry for lane in runtime.lanes for entry in lane.running.values()]
        assert sum(entry.needs or 0 for entry in running) <= TOTAL
        seen.update(entry.waiting_for for entry in runtime.lanes.next_up(10) if entry.waiting_for)
        await asyncio.sleep(0.005)


async def test_graphs_that_do_not_fit_together_run_one_after_the_other(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        reasons: set[str] = set()
        watching = asyncio.create_task(overlaps(runtime, reasons))
        tasks = [await ended(runtime, task_id) for task_id in [await submit(runtime, "compute", CHAIN, wait=False) for _ in range(4)]]
        assert not watching.done()
        watching.cancel()
        assert [(task.status, task.attempt) for task in tasks] == [("completed", 1)] * 4
        needed = tasks[0].result.output["memory_estimate"] if tasks[0].result else 0
        assert TOTAL / 2 < needed < TOTAL
        assert any(f"it needs {gigabytes(needed)}" in reason for reason in reasons), reasons


async def test_small_graphs_run_at_once(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, cpu_slots=2) as runtime:
        task_id = await submit(runtime, "compute", {"expression": "sum(a + 1)", "inputs": {"a": {"random": [1000]}}})
        entry = runtime.tasks.find(task_id)
        assert entry is not None
        known = entry.needs
        await completed(runtime, task_id)
        assert entry.needs == known, "it has not waited for memory"
