from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from openruntime_jupyter.runtime.metrics.gpu import GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import Sample
from openruntime_jupyter.runtime.metrics.service import MetricsRecorder
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.base import epoch
from openruntime_jupyter.schemas.system import Metrics, MetricsHistory
from tests.runtime.history_support import opened, rows
from tests.runtime.test_counters import Clocks
from tests.runtimes import cell, ended, runtime_in, until

Point = tuple[float | None, float | None, float | None]


@contextlib.asynccontextmanager
async def metrics_recorder(folder: Path, runtime: str = "rt_1") -> AsyncIterator[tuple[MetricsRecorder, Clocks, History]]:
    """Create a metrics recorder with manual clocks, and its history."""
    clocks = Clocks()
    clocks.wall = float(math.floor(time.time()))
    async with opened(folder, runtime) as history:
        yield MetricsRecorder(Settings(data_dir=folder), history, lambda: clocks.monotonic, lambda: clocks.wall), clocks, history


def see(recorder: MetricsRecorder, clocks: Clocks, memory: float | None, gpu: float | None = None, **sample: object) -> None:
    """Record a sample at the current time."""
    metrics = Metrics(gpu_utilization=gpu, memory_usage=memory, active_tasks=0, ai_tasks_processed=0)
    recorder.sampled(Sample(memory_usage=memory, taken=clocks.monotonic, **sample), metrics, 1000)  # type: ignore[arg-type]


def points(history: MetricsHistory, figure: str = "memory_usage") -> dict[float, Point]:
    """Return the points with a value, by their start in seconds."""
    series = history.series[figure]
    return {
        epoch(start): point  # type: ignore[misc]
        for start, *point in zip(history.timestamps, series.min, series.mean, series.max, strict=True)
        if point != [None, None, None]
    }


async def test_sample_covers_time_since_previous_one(tmp_path: Path) -> None:
    async with metrics_recorder(tmp_path) as (recorder, clocks, _):
        begin = clocks.wall
        see(recorder, clocks, 99.0)  # covers no time
        for value in (10.0, 30.0):
            clocks.go(10)
            see(recorder, clocks, value)
        for _ in range(4):
            clocks.go(1)
            see(recorder, clocks, 50.0)
        found = points(await recorder.read("5m", 300))
        assert list(found) == [begin + second for second in range(24)]
        assert [point[1] for point in found.values()] == [10.0] * 10 + [30.0] * 10 + [50.0] * 4
        assert points(await recorder.read("5m", 300), "worker_memory")[begin] == [1000.0] * 3


async def test_unreadable_metric_leaves_a_gap(tmp_path: Path) -> None:
    async with metrics_recorder(tmp_path) as (recorder, clocks, _):
        see(recorder, clocks, 1.0)
        gpus = {"device_0": GpuReadings(memory_used=300), "device_1": GpuReadings(memory_used=200), "device_2": GpuReadings()}
        for memory, gpu, figures in ((1.0, None, {}), (None, 5.0, gpus)):
            clocks.go(1)
            see(recorder, clocks, memory, gpu, gpus=figures)
        history = await recorder.read("5m", 300)
        names = ("memory_usage", "gpu_utilization", "gpu_memory", "active_tasks")
        assert [len(points(history, name)) for name in names] == [1, 1, 1, 2]
        assert list(points(history, "gpu_memory").values()) == [[500.0] * 3]


async def test_suspended_runtime_leaves_a_gap(tmp_path: Path) -> None:
    async with metrics_recorder(tmp_path) as (recorder, clocks, _):
        begin = clocks.wall
        see(recorder, clocks, 1.0)
        clocks.go(10, 100)  # suspended: the monotonic clock stops
        see(recorder, clocks, 1.0)
        assert list(points(await recorder.read("5m", 300))) == [begin + 100 + second for second in range(10)]
        clocks.go(100)  # stopped process: the monotonic clock continues
        see(recorder, clocks, 1.0)
        found = points(await recorder.read("5m", 300))
        assert len(found) == 10 + 30, "at most three sampling intervals"
        assert len(points(await recorder.read("5m", 300), "active_tasks")) == 10 + 31, "and the second in which it stopped"


@pytest.mark.parametrize("jump", [-3600.0, -86_400.0, 3600.0])
async def test_changed_wall_clock_keeps_history_correct(tmp_path: Path, jump: float) -> None:
    async with metrics_recorder(tmp_path) as (recorder, clocks, _):
        begin = clocks.wall
        see(recorder, clocks, 10.0)
        for _ in range(6):
            clocks.go(10)
            see(recorder, clocks, 10.0)
        clocks.go(0, jump)
        for _ in range(6):
            clocks.go(10)
            see(recorder, clocks, 20.0)
        # The last minutes by the current clock.
        now = points(await recorder.read("5m", 300))
        assert {start: point[1] for start, point in now.items()} == {begin + jump + 60 + second: 20.0 for second in range(60)}


async def test_metrics_are_written_every_ten_seconds_and_on_stop(tmp_path: Path) -> None:
    async with metrics_recorder(tmp_path) as (recorder, clocks, history):
        see(recorder, clocks, 1.0)
        on_disk = []
        for _ in range(25):
            clocks.go(1)
            see(recorder, clocks, 1.0)
            await history._flush(10.0)
            on_disk.append(rows(tmp_path, "SELECT count(*) FROM metrics WHERE tier = 1")[0][0])
        assert on_disk == [0] * 9 + [10] * 10 + [20] * 6
        recorder.write()
    assert rows(tmp_path, "SELECT count(*) FROM metrics WHERE tier = 1") == [(25,)]


async def test_metrics_history_survives_runtime_restart(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, idle_sample_interval=0.1) as first:
        for code in ("import time; time.sleep(0.5)", "1 / 0"):
            await ended(first, await cell(first, code))
        before = first.metrics_service.latest
        await until(lambda: first.metrics_service.latest is not before, what="another sample")
    async with runtime_in(tmp_path, idle_sample_interval=600.0) as second:
        history = await second.metrics_service.history("5m", 300, first.id)

        def known(name: str) -> list[float]:
            return [value for value in history.series[name].mean if value is not None]

        assert (sum(known("completed_tasks")), sum(known("failed_tasks"))) == (1, 1)
        # Samples need not coincide with the tasks, because run times are recorded exactly.
        assert sum(known("active_tasks")) * history.resolution_s > 0.5
        assert max(known("run_time")) >= 0.25
        assert known("memory_usage")
        assert all(0 < value < 100 for value in known("memory_usage"))
        assert set(known("gpu_utilization")) == {0.0}
        assert max(known("worker_memory")) > 1e6
        here = await second.metrics_service.history("5m", 300, second.id)
        assert sum(value or 0 for value in here.series["completed_tasks"].mean) == 0
