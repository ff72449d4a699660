"""What findings are made from: the figures and tasks that the history holds of a timeframe, and what the runtime is like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import numpy as np

from openruntime_jupyter.ai.insights.statistics import Array
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.runtime.storage.insights import Ended, Ran
from openruntime_jupyter.runtime.storage.metrics import MetricColumns
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.system import TIMEFRAMES, Device, Timeframe

POINTS: dict[Timeframe, int] = {"5m": 30, "15m": 90, "1h": 360, "6h": 720, "24h": 1440, "7d": 2016}
"""Values that are looked at: never finer than the 10 seconds between samples that nobody watches."""
LEAST_POINTS = 20
"""Values without which nothing is said of peaks and trends."""
EARLIER: dict[Timeframe, float] = {"5m": 1.5, "15m": 1.5, "1h": 1.5, "6h": 4.0, "24h": 1.5, "7d": 0.0}
"""Timeframes that are looked at before the timeframe, for whether what rises swings: a day where it may rise all the morning."""
EARLIER_POINTS = 150
MOST_OPERATIONS = 8
MOST_COMPARED = 200
LEAST_COMPARED = 8
"""Tasks of a kind without which their durations are not compared."""


@dataclass(frozen=True)
class Columns:
    """Figures over time as arrays, NaN where there is none."""

    raw: MetricColumns
    _arrays: dict[tuple[str, str], Array] = field(default_factory=dict)

    @cached_property
    def times(self) -> Array:
        """When each point begins, in seconds since the epoch."""
        return np.array(self.raw.starts, dtype=np.float64)

    @property
    def step(self) -> int:
        """The length of a point in seconds."""
        return self.raw.resolution

    def of(self, figure: str, column: Literal["min", "mean", "max"] = "mean") -> Array:
        """A figure's values, one a point."""
        found = self._arrays.get((figure, column))
        if found is None:
            found = self._arrays[figure, column] = np.array(getattr(self.raw.series[figure], column), dtype=np.float64)
        return found

    def known(self, figure: str, column: Literal["min", "mean", "max"] = "mean") -> Array:
        """Those that there are."""
        values = self.of(figure, column)
        return values[~np.isnan(values)]

    @cached_property
    def observed(self) -> int:
        """How many points a runtime was there for."""
        return int(self.known("active_tasks").size)


@dataclass(frozen=True)
class Place:
    """What the findings are about: the devices, the settings, and the machine's memory in bytes."""

    devices: Sequence[Device]
    settings: Settings
    memory_total: int

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU is there."""
        return any(device.type == "gpu" for device in self.devices)

    @property
    def slots(self) -> int:
        """How many tasks may run at once on the device that they prefer."""
        kind = "gpu" if self.has_gpu else "cpu"
        there = sum(device.slots for device in self.devices if device.type == kind)
        return there or self.settings.cpu_slot_count


@dataclass(frozen=True)
class Compared:
    """How long alike tasks of an operation ran in the timeframe and before it, in seconds."""

    operation: str
    lately: Array
    before: Array


@dataclass(frozen=True)
class Dataset:
    """Of one timeframe, which ends at `end`; times are in seconds since the epoch."""

    timeframe: Timeframe
    begin: float
    end: float
    place: Place
    columns: Columns
    earlier: Columns | None
    """What came before the timeframe; None where the history keeps nothing of that."""
    ended: Ended
    running: list[Ran]
    compared: list[Compared]

    @property
    def enough(self) -> bool:
        """Whether there are figures enough to tell peaks and trends from chance."""
        return self.columns.observed >= LEAST_POINTS

    @cached_property
    def completed(self) -> list[Ran]:
        """The tasks that completed, of those that were drawn."""
        return [task for task in self.ended.tasks if task.state == "completed"]

    def before(self, figure: str) -> Array | None:
        """The figure's values before the timeframe, its gaps left out."""
        return None if self.earlier is None else self.earlier.known(figure)


async def gather(history: History, timeframe: Timeframe, now: float, place: Place) -> Dataset:
    """All that the history has; `now` is its end, in seconds since the epoch. Raises `StorageUnavailable` where it can't be read.

    Each question is one short turn of the history's reader, so that others are answered in between.
    """
    span = TIMEFRAMES[timeframe]
    begin = now - span
    columns = Columns(await history.metrics(begin, now, POINTS[timeframe], None, now, sampled_only=True))
    earlier = None
    if EARLIER[timeframe]:
        earlier = Columns(await history.metrics(begin - EARLIER[timeframe] * span, begin, EARLIER_POINTS, None, now, sampled_only=True))
    ended = await history.look(partial(questions.ended, begin=begin, end=now))
    running = await history.look(questions.running)
    often = Counter(task.operation for task in ended.tasks if task.state == "completed").most_common(MOST_OPERATIONS)
    compared = [
        each
        for operation, number in often
        if number >= LEAST_COMPARED and (each := await _compared(history, operation, begin, now)) is not None
    ]
    return Dataset(timeframe, begin, now, place, columns, earlier, ended, running, compared)


async def _compared(history: History, operation: str, begin: float, end: float) -> Compared | None:
    """Like with like: the tasks of the same name and parameters of which there are most on both sides."""
    lately = await history.look(partial(questions.durations, operation=operation, begin=begin, end=end, most=MOST_COMPARED))
    before = await history.look(partial(questions.durations, operation=operation, begin=0.0, end=begin, most=MOST_COMPARED))
    number, alike = max(((min(len(times), len(before.get(key, ()))), key) for key, times in lately.items()), default=(0, 0))
    return Compared(operation, np.array(lately[alike]), np.array(before[alike])) if number >= LEAST_COMPARED else None
