"""Dataset of the findings: metrics and tasks of a timeframe, devices and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np

from openruntime_jupyter.ai.insights.statistics import Array
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.runtime.storage.insights import Ended, TaskRow
from openruntime_jupyter.runtime.storage.metrics import MetricColumns
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.system import TIMEFRAMES, Device, Timeframe

POINTS: dict[Timeframe, int] = {"5m": 30, "15m": 90, "1h": 360, "6h": 720, "24h": 1440, "7d": 2016}
"""Points per timeframe. Points are at least 10 s long, the sampling interval without watchers."""
LEAST_POINTS = 20
"""Minimum number of points to report peaks and trends."""
EARLIER: dict[Timeframe, float] = {"5m": 1.5, "15m": 1.5, "1h": 1.5, "6h": 4.0, "24h": 1.5, "7d": 0.0}
"""Length of the earlier data, in timeframes, used to tell rises from oscillations. Covers a day if values may rise all morning."""
EARLIER_POINTS = 150
MOST_OPERATIONS = 8
MOST_COMPARED = 200
LEAST_COMPARED = 8
"""Minimum number of similar tasks to compare durations."""


@dataclass(frozen=True)
class Columns:
    """Metrics over time as arrays, with NaN for gaps."""

    raw: MetricColumns

    @cached_property
    def times(self) -> Array:
        """Return the start of each point in seconds since the epoch."""
        return np.array(self.raw.starts, dtype=np.float64)

    @property
    def step(self) -> int:
        """Return the length of a point in seconds."""
        return self.raw.resolution

    def of(self, figure: str, column: Literal["mean", "max"] = "mean") -> Array:
        """Return the values of a metric, one per point."""
        return np.array(getattr(self.raw.series[figure], column), dtype=np.float64)

    def known(self, figure: str, column: Literal["mean", "max"] = "mean") -> Array:
        """Return the values of a metric without gaps."""
        values = self.of(figure, column)
        return values[~np.isnan(values)]

    @cached_property
    def observed(self) -> int:
        """Return the number of points with a running runtime."""
        return int(self.known("active_tasks").size)


@dataclass(frozen=True)
class Environment:
    """Environment of the findings: devices, settings, and the machine's memory in bytes."""

    devices: Sequence[Device]
    settings: Settings
    memory_total: int

    @property
    def has_gpu(self) -> bool:
        """Return whether there is a GPU."""
        return any(device.type == "gpu" for device in self.devices)

    @property
    def slots(self) -> int:
        """Return the number of slots of the preferred device type."""
        kind = "gpu" if self.has_gpu else "cpu"
        there = sum(device.slots for device in self.devices if device.type == kind)
        return there or self.settings.cpu_slot_count


@dataclass(frozen=True)
class Compared:
    """Durations of similar tasks of an operation in the timeframe and before it, in seconds."""

    operation: str
    lately: Array
    before: Array


@dataclass(frozen=True)
class Dataset:
    """Data of a timeframe that ends at `end`. Times are in seconds since the epoch."""

    timeframe: Timeframe
    begin: float
    end: float
    environment: Environment
    columns: Columns
    earlier: Columns | None
    """Metrics before the timeframe; None if the history does not keep them."""
    ended: Ended
    compared: list[Compared]

    @property
    def enough(self) -> bool:
        """Return whether there are enough points to distinguish peaks and trends from chance."""
        return self.columns.observed >= LEAST_POINTS

    @property
    def completed(self) -> list[TaskRow]:
        """Return the completed tasks of the sample."""
        return [task for task in self.ended.tasks if task.state == "completed"]

    def before(self, figure: str) -> Array | None:
        """Return the values of a metric before the timeframe, without gaps."""
        return None if self.earlier is None else self.earlier.known(figure)


async def gather(history: History, timeframe: Timeframe, now: float, environment: Environment) -> Dataset:
    """Return the dataset of the `timeframe` that ends at `now`, in seconds since the epoch. Raises `StorageUnavailable`.

    Each query is short, so that the history's reader can serve other queries in between.
    """
    span = TIMEFRAMES[timeframe]
    begin = now - span
    columns = Columns(await history.metrics(begin, now, POINTS[timeframe], None, now, sampled_only=True))
    earlier = None
    if EARLIER[timeframe]:
        earlier = Columns(await history.metrics(begin - EARLIER[timeframe] * span, begin, EARLIER_POINTS, None, now, sampled_only=True))
    ended = await history.look(partial(questions.ended, begin=begin, end=now))
    often = Counter(task.operation for task in ended.tasks if task.state == "completed").most_common(MOST_OPERATIONS)
    compared = [
        each
        for operation, number in often
        if number >= LEAST_COMPARED and (each := await _compared(history, operation, begin, now)) is not None
    ]
    return Dataset(timeframe, begin, now, environment, columns, earlier, ended, compared)


async def _compared(history: History, operation: str, begin: float, end: float) -> Compared | None:
    """Return the durations of the most frequent name and parameters on both sides, or None for too few tasks."""
    lately = await history.look(partial(questions.durations, operation=operation, begin=begin, end=end, most=MOST_COMPARED))
    before = await history.look(partial(questions.durations, operation=operation, begin=0.0, end=begin, most=MOST_COMPARED))
    number, alike = max(((min(len(times), len(before.get(key, ()))), key) for key, times in lately.items()), default=(0, 0))
    return Compared(operation, np.array(lately[alike]), np.array(before[alike])) if number >= LEAST_COMPARED else None
