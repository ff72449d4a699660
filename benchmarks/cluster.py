"""Cost of the queue for many devices: CPU time of a submission and of a dispatch, with 1,000 lanes and a million pending tasks.

The scheduler, its queues and its lanes are real. Engine, history and events are stubs that return at once. The time that the stub of the
engine takes by itself is measured and subtracted, so that the rows are the scheduler's share.
`python -m benchmarks.cluster LANES PENDING` runs only one simulation.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.rows import HEAD, Row, at_most, within
from openruntime_jupyter.engines.protocol import Completed, DeviceReport, Engine, Job, Measurements, Observer, Outcome, StopReason
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.metrics.sampler import Meters
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.device_lock import DeviceLock
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.queue.scheduler import Scheduler, WorkerStats
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.entry import Entry, OutputBuffer, QueueKey
from openruntime_jupyter.runtime.tasks.registry import TaskRegistry
from openruntime_jupyter.runtime.tasks.sessions import Sessions

LANES = 1000
PENDING = 1_000_000
DISPATCHES = 100_000
OUTPUT = OutputBuffer(10_000)
REPORT = DeviceReport("gpu", 0, "GPU", 1 << 34, ("cuda", "mlx"), "0")


class InstantEngine:
    """Engine whose jobs complete in the next loop iteration."""

    def __init__(self, wanted: int) -> None:
        self.done = asyncio.Event()
        self._left = wanted

    async def run(self, job: Job, observer: Observer) -> Outcome:
        """Complete the job."""
        observer.started(job.lane)
        await asyncio.sleep(0)
        self._left -= 1
        if self._left == 0:
            self.done.set()
        return Completed({}, Measurements())

    def halt(self, task_id: str, reason: StopReason) -> None:
        """Ignore the request."""

    def workers(self) -> list[Any]:
        """Return no workers."""
        return []


class NoObserver:
    """Observer that ignores the start."""

    def started(self, worker: str) -> None:
        """Ignore it."""


async def _stub_cost(lanes: int, runs: int) -> float:
    """CPU time of a job of `InstantEngine`, with as many jobs at once as there are lanes."""
    engine, job, observer = InstantEngine(0), cast("Job", SimpleNamespace(lane="device_0")), cast("Observer", NoObserver())

    async def slot() -> None:
        for _ in range(runs // lanes):
            await engine.run(job, observer)

    begun = time.process_time()
    await asyncio.gather(*(slot() for _ in range(lanes)))
    return (time.process_time() - begun) / (runs // lanes * lanes)


class NoRecords:
    """Task registry without tasks."""

    async def record(self, entry: Entry) -> bool:
        """Record nothing."""
        return True


@dataclass
class Cost:
    """CPU time in seconds of a submission to the queue, and of a task from its queue to its end without that of the engine's stub."""

    submission: float
    dispatch: float


class Simulation:
    """Scheduler with `lanes` devices of `slots` slots; each completes tasks at once until `wanted` have run."""

    def __init__(self, lanes: int, slots: int, wanted: int) -> None:
        settings = Settings(device_lock="none")
        self.engine = InstantEngine(wanted)
        self.lanes = Lanes()
        machine, engine, nothing = Machine(), cast("Engine", self.engine), cast("Any", None)
        self._open = [Lane(f"device_{number}", REPORT, slots, 30.0, engine, machine) for number in range(lanes)]
        self.scheduler = Scheduler(
            settings,
            self.lanes,
            Admission(engine),
            DeviceLock(settings, "rt"),
            cast("TaskRegistry", NoRecords()),
            Meters(),
            WorkerStats(engine),
            cast("ArrayStore", nothing),
            cast("Sessions", nothing),
        )
        self._begun = time.monotonic()

    def join(self) -> None:
        """Open the lanes."""
        for lane in self._open:
            self.scheduler.join(lane)

    def entry(self, number: int, queue: str = "auto") -> Entry:
        """Return a new task."""
        priority = 1 + number % 10
        return Entry(
            task_id=f"task_{number}",
            operation="call",
            parameters=b"{}",
            given={},
            queue=queue,
            key=QueueKey.of(self._begun + number * 1e-6, priority, 30.0, number),
            priority=priority,
            owner=None,
            origin="rest",
            wait=True,
            runtime="rt",
            output=OUTPUT,
            submitted_mono=self._begun,
            returns_arrays=False,
        )

    def submit(self, entry: Entry) -> None:
        """Queue a task, with the questions that a submission asks."""
        self.scheduler.enqueue(entry)
        _ = self.lanes.pending, self.lanes.position(entry), self.lanes.estimate(entry), self.lanes.queue_of(entry).waiting_for


async def _cost(lanes: int, slots: int, pending: int) -> Cost:
    wanted = min(pending, DISPATCHES)
    simulation = Simulation(lanes, slots, wanted)
    simulation.join()
    entries = [simulation.entry(number) for number in range(pending)]
    await asyncio.sleep(0)  # the slots wait now
    gc.collect()
    gc.freeze()  # the runtime does so after its start
    begun = time.process_time()
    for entry in entries:  # the slots do not run in between
        simulation.submit(entry)
    submitted = time.process_time()
    entries.clear()  # a task is freed at its end
    await simulation.engine.done.wait()
    ended = time.process_time()
    await simulation.scheduler.stop()
    await simulation.scheduler.close(5.0)
    gc.unfreeze()
    return Cost((submitted - begun) / pending, (ended - submitted) / wanted - await _stub_cost(lanes * slots, wanted))


def cost(lanes: int, slots: int, pending: int) -> Cost:
    """Return the costs with so many lanes of `slots` slots and pending tasks."""
    return asyncio.run(_cost(lanes, slots, pending))


def rows() -> list[Row]:
    """Return the rows; the peer is one lane with as many slots."""
    one, many = cost(1, LANES, PENDING // 10), cost(LANES, 1, PENDING // 10)
    most = cost(LANES, 1, PENDING)
    return [
        within(f"queue: CPU of a dispatch, {LANES:,} lanes, {PENDING:,} pending", 1e6 * most.dispatch, 40.0, "µs"),
        at_most(f"queue: CPU of a dispatch, {LANES:,} lanes and one", 1e6 * many.dispatch, 1e6 * one.dispatch, 1.3, "µs"),
        at_most(f"queue: CPU of a submission, {LANES:,} lanes and one", 1e6 * many.submission, 1e6 * one.submission, 1.3, "µs"),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        found = cost(int(sys.argv[1]), 1, int(sys.argv[2]))
        print(f"submission {1e6 * found.submission:.1f} µs, dispatch {1e6 * found.dispatch:.1f} µs of CPU")
    else:
        print(HEAD, *rows(), sep="\n")
