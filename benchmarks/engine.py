"""Empty tasks through the engine and the complete runtime, compared with `concurrent.futures.ProcessPoolExecutor`.

`python -m benchmarks.engine ROUNDS` runs only this benchmark. A round takes two seconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.rows import HEAD, Row, at_least, at_most, median, seconds
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import Job
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import ResponsePiece

ROUNDS = 5
CALLS = 500
BURST = 2000
WORKERS = 2


class NullObserver:
    """Observer that ignores all events."""

    def started(self, worker: str) -> None:
        """Ignore the event."""

    def waiting(self, reason: str | None) -> None:
        """Ignore the event."""

    def progressed(self, progress: dict[str, Any]) -> None:
        """Ignore the event."""

    def printed(self, stream: str, text: str, omitted: int = 0) -> None:
        """Ignore the event."""

    def displayed(self, item: dict[str, Any]) -> None:
        """Ignore the event."""

    def generated(self, piece: ResponsePiece) -> None:
        """Ignore the event."""


def job(number: int) -> Job:
    """Return an empty call of one burst: like the peer's, its process is reused."""
    name = f"task_{number}"
    return Job(name, "call", b"{}", "device_0", "cpu", 0, None, 0, 1, f"{name}.1", private=True, burst="benchmark")


async def round_trips(engine: LocalEngine) -> float:
    """Return the median seconds from a job to its outcome, one at a time."""
    observer, found = NullObserver(), []
    for number in range(CALLS):
        before = time.perf_counter()
        await engine.run(job(number), observer)
        found.append(time.perf_counter() - before)
    return median(found)


async def burst(runtime: Runtime) -> float:
    """Return the tasks per second of a burst, with states, events and history."""
    before = time.perf_counter()
    ids = [
        await runtime.submission.submit(TaskRequest(operation="call", parameters={"burst": "benchmark"}), Caller()) for _ in range(BURST)
    ]
    for task_id in ids:
        await runtime.tasks.wait(task_id)
    return BURST / (time.perf_counter() - before)


def pool_round_trips(pool: ProcessPoolExecutor) -> float:
    """Return the median seconds of a call of the pool."""
    return median(seconds(lambda: pool.submit(abs, 1).result(), CALLS))


def pool_burst(pool: ProcessPoolExecutor) -> float:
    """Return the calls per second of a burst in the pool, which has no states, events or history."""
    before = time.perf_counter()
    for future in [pool.submit(abs, 1) for _ in range(BURST)]:
        future.result()
    return BURST / (time.perf_counter() - before)


async def _measure(pool: ProcessPoolExecutor, folder: Path, rounds: int) -> tuple[list[float], list[float], list[float], list[float]]:
    engine = LocalEngine(LocalOptions(folder, folder))
    await engine.start()
    await engine.devices()
    runtime = Runtime(Settings(data_dir=folder / "data", cpu_slots=WORKERS))
    await runtime.start()
    await runtime.submit(TaskRequest(operation="call", parameters={}), Caller())
    trips, pool_trips, bursts, pool_bursts = [], [], [], []
    await round_trips(engine)
    await burst(runtime)
    pool_round_trips(pool)
    for _ in range(rounds):  # alternate, so that a change of the machine's speed affects both
        trips.append(await round_trips(engine))
        pool_trips.append(pool_round_trips(pool))
        bursts.append(await burst(runtime))
        pool_bursts.append(pool_burst(pool))
    await runtime.stop()
    await engine.stop(5.0)
    return trips, pool_trips, bursts, pool_bursts


def rows(rounds: int = ROUNDS) -> list[Row]:
    """Return both rows."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        trips, pool_trips, bursts, pool_bursts = asyncio.run(_measure(pool, Path(folder), rounds))
    return [
        at_most("engine: submit → result of an empty task, p50", 1e6 * median(trips), 1e6 * median(pool_trips), 0.6, "µs"),
        at_least("runtime: empty tasks, states, events and history on", median(bursts), median(pool_bursts), 1.0, "tasks/s"),
    ]


if __name__ == "__main__":
    print(HEAD, *rows(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS), sep="\n")
