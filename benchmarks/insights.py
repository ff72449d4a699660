"""Response time and event loop lag of insights over seven days of history, without a model."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, median, within
from openruntime_jupyter.ai.insights.report import insights
from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.metrics.counters import Ledger
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.insights import InsightsRequest
from openruntime_jupyter.schemas.tasks import PerformanceMetrics, Task, TaskState

DAYS = 7
TASKS = 20_000
ROUNDS = 7
TICK = 0.001
LEVELS = {
    "memory_usage": 40.0,
    "cpu_utilization": 30.0,
    "gpu_utilization": 0.0,
    "worker_memory": 1.5e9,
    "active_tasks": 1.0,
    "pending_tasks": 0.2,
}


def _task(end: float, dice: random.Random) -> Task:
    seconds = dice.uniform(0.1, 5.0)
    state = TaskState.FAILED if dice.random() < 0.02 else TaskState.COMPLETED
    return Task(
        task_id=make_id("task"),
        status=state,
        operation=dice.choice(("compute", "matrix_multiply", "python")),
        timestamp=iso(end) or "",
        submitted_at=iso(end - seconds - 0.1) or "",
        started_at=iso(end - seconds),
        finished_at=iso(end),
        execution_time=seconds,
        attempt=1,
        wait=False,
        device_used="device_0",
        performance_metrics=PerformanceMetrics(peak_memory_mb=dice.gauss(300, 20)),
        parameters={"size": dice.randrange(5)},
    )


async def _write(folder: Path) -> None:
    """Write a week of history as a runtime would: full rollups, and tasks throughout."""
    dice, now = random.Random(1), time.time()
    history = History(Settings(data_dir=folder), "rt_past")
    history.open()
    ledger = Ledger(10.0)
    moments = [now - number * 60.0 for number in range(DAYS * 1440)] + [now - number * 10.0 for number in range(6 * 360)]
    for at in moments:
        ledger.add_interval({name: max(0.0, dice.gauss(level, level / 20)) for name, level in LEVELS.items()}, at, 1.0)
    history.put_metrics(ledger.take())
    tasks = [_task(now - (TASKS - number) * DAYS * 86_400 / TASKS, dice) for number in range(TASKS)]
    for first in range(0, TASKS, 1000):
        await history.commit_all(tasks[first : first + 1000])
    await history.close(30.0)


async def _lags(found: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(TICK)
        found.append(time.perf_counter() - before - TICK)


async def _measure(folder: Path) -> tuple[float, float]:
    """Return the median response time and the median of the longest event loop lag, in milliseconds."""
    await _write(folder)
    runtime = Runtime(Settings(data_dir=folder))
    await runtime.start()
    took, held = [], []
    for number in range(ROUNDS + 1):
        lags: list[float] = []
        watch = asyncio.create_task(_lags(lags))
        before = time.perf_counter()
        await insights(runtime, InsightsRequest(metric_type="performance", timeframe="7d"), lambda which: None)
        if number:  # the first one warms the caches
            took.append(time.perf_counter() - before)
            held.append(max(lags))
        watch.cancel()
    await runtime.stop()
    return 1000 * median(took), 1000 * median(held)


def rows() -> list[Row]:
    """Return both rows, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        took, held = asyncio.run(_measure(Path(folder)))
    return [
        within(f"insights over {DAYS} days and {TASKS:,} tasks, no model", took, 300.0, "ms"),
        within("longest event loop lag during it", held, 20.0, "ms"),
    ]
