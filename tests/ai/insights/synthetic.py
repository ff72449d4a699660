"""Synthetic histories of hours and days, generated in a second and written by the production code."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openruntime_jupyter.ai.insights.dataset import Dataset, Environment, gather
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.report import drafts_of, name_tasks
from openruntime_jupyter.runtime.metrics.counters import ENDED_AS, Ledger
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import epoch, iso
from openruntime_jupyter.schemas.insights import MetricType
from openruntime_jupyter.schemas.system import TIMEFRAMES, Device, Timeframe
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, PerformanceMetrics, Task, TaskState
from tests.runtime.history_support import make_task, moved, opened
from tests.runtimes import until

DAY = 86_400.0
SAMPLES: dict[Timeframe, float] = {"5m": 10.0, "15m": 10.0, "1h": 10.0, "6h": 30.0, "24h": 60.0, "7d": 300.0}
"""Seconds from one sample to the next, so that no value that is looked at is missing, and none has more samples than it needs."""

MEMORY = 16 * 10**9
CPU = Device(
    id="device_0",
    name="A processor",
    type="cpu",
    status="available",
    capabilities=[],
    memory_total=MEMORY,
    memory_available=MEMORY,
    slots=2,
)
GPU = CPU.model_copy(update={"id": "device_0", "name": "A chip", "type": "gpu", "slots": 1})

Trend = Callable[[float], float]
"""Value of a metric as a function of time."""


@dataclass
class Story:
    """History of a timeframe that ends at `now`, in seconds since the epoch; `courses` are the sampled metrics."""

    timeframe: Timeframe
    now: float
    courses: dict[str, Trend] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    seed: int = 0
    spans: float = 1.0
    """Timeframes that there is a history of."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    @property
    def span(self) -> float:
        return float(TIMEFRAMES[self.timeframe])

    @property
    def begin(self) -> float:
        return self.now - self.span

    def at(self, share: float) -> float:
        """Return the time at a share of the timeframe."""
        return self.begin + share * self.span

    def noise(self, level: float, deviation: float) -> Trend:
        return lambda at: max(0.0, self.dice.gauss(level, deviation))

    def daily(self, level: float, swing: float, deviation: float) -> Trend:
        """Return a daily oscillation with a random phase."""
        hour = self.dice.random() * 2 * math.pi
        return lambda at: max(0.0, level + swing * math.sin(2 * math.pi * at / DAY + hour) + self.dice.gauss(0, deviation))

    def task(self, end: float, seconds: float, operation: str = "compute", waited: float = 0.0, **fields: Any) -> Task:
        """Add an ended task."""
        peak, failure = fields.pop("peak", None), fields.pop("failure", None)
        state = fields.pop("state", TaskState.FAILED if failure else TaskState.COMPLETED)
        task = make_task(seconds=end - seconds - waited, operation=operation, attempt=1, **fields)
        task = moved(
            task,
            state,
            timestamp=iso(end),
            started_at=iso(end - seconds),
            finished_at=iso(end),
            execution_time=seconds,
            device_used="device_0",
            failure=failure,
            error=failure.message if failure else None,
            performance_metrics=PerformanceMetrics(peak_memory_mb=None if peak is None else peak / 1e6),
        )
        self.tasks.append(task)
        return task

    def failing(self, end: float, operation: str = "compute", kind: FailureKind = FailureKind.RAISED, message: str = "no") -> Task:
        return self.task(end, 0.5, operation, failure=Failure(kind=kind, message=message, type="ValueError"))

    def work(self, every: float, seconds: float, operation: str = "compute", failing: float = 0.0, **fields: Any) -> None:
        """Add tasks at random times, about one per `every` seconds, of which the share `failing` fails."""
        end = self.begin + seconds
        while (end := end + self.dice.expovariate(1 / every)) < self.now - 1:
            if self.dice.random() < failing:
                self.failing(end, operation)
            else:
                self.task(end, seconds * self.dice.uniform(0.9, 1.1), operation, **fields)

    async def tell(self, history: History) -> None:
        """Write the history."""
        ledger, step = Ledger(10.0), SAMPLES[self.timeframe]
        for number in range(int(self.spans * self.span / step)):
            # One second per sample, with the value of its point: a week would be 600,000 seconds.
            at = self.now - number * step
            ledger.add_interval({name: course(at) for name, course in self.courses.items()}, at, 1.0)
        for task in self.tasks:
            ledger.add_event({ENDED_AS[task.status]: 1.0, "run_time": task.execution_time or 0.0}, _seconds(task.finished_at))
        history.put_metrics(ledger.take())
        for first in range(0, len(self.tasks), 1000):
            await history.commit_all(self.tasks[first : first + 1000])
        await history._flush(60)
        await until(lambda: not history._behind.waiting, 60, "the history's writing")


def _seconds(moment: str | None) -> float:
    found = epoch(moment)
    assert found is not None
    return found


def ordinary(story: Story) -> Story:
    """Add the metrics of a healthy machine."""
    story.courses = {
        "memory_usage": story.noise(40, 1),
        "cpu_utilization": story.noise(30, 8),
        "gpu_utilization": lambda at: 0.0,
        "worker_memory": story.noise(1.5e9, 3e7),
        "active_tasks": story.noise(0.8, 0.3),
        "pending_tasks": lambda at: 0.0,
    }
    return story


def planted(timeframe: Timeframe, now: float, seed: int = 1) -> Story:
    """Add a spike at 40 % of the time with a task of alice, a leak from 50 % to 90 %, and twelve failures in a row at 70 %."""
    story = ordinary(Story(timeframe, now, seed=seed))
    story.work(story.span / 300, 0.2)
    memory, workers = story.courses["memory_usage"], story.courses["worker_memory"]
    spike, length = story.at(0.4), max(30.0, story.span / 300)
    story.courses["memory_usage"] = lambda at: 78.0 if spike <= at <= spike + length else memory(at)
    story.task(spike + length + 1, length + 2, "python", name="train", owner="alice", peak=6e9)
    begin, end = story.at(0.5), story.at(0.9)
    story.courses["worker_memory"] = lambda at: workers(at) + 2e9 * min(1.0, max(0.0, (at - begin) / (end - begin)))
    for number in range(80):
        story.task(begin + (end - begin) * (number + 1) / 81, story.span / 1000, "python", name="grow", peak=3e8 + 2.5e7 * number)
    for number in range(12):
        story.failing(story.at(0.7) + number * story.span / 3600, "matrix_multiply", message="bad shape")
    return story


async def look(
    story: Story, folder: Path, *kinds: MetricType, devices: tuple[Device, ...] = (CPU,)
) -> tuple[Dataset, list[list[FindingDraft]]]:
    """Write the story and return the findings for each metric type."""
    async with opened(folder) as history:
        await story.tell(history)
        dataset = await gather(history, story.timeframe, story.now, Environment(devices, Settings(data_dir=folder), MEMORY))
        found = [drafts_of(dataset, kind) for kind in kinds]
        for drafts in found:
            await name_tasks(history, drafts)
        return dataset, found
