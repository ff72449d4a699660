from __future__ import annotations

import time

import pytest

from openruntime_jupyter.runtime.metrics.gpu.base import NOTHING, GpuFigures
from openruntime_jupyter.runtime.metrics.gpu.meters import SETTLE_SECONDS, Meters


def busy(percent: float | None, gpu: str = "device_0") -> dict[str, GpuFigures]:
    return {gpu: GpuFigures(utilization=percent)}


def later(seconds: float) -> float:
    return time.monotonic() + seconds


def test_meter_returns_mean_of_samples_during_run() -> None:
    meters = Meters()
    meters.begin("a", "device_0")
    for second, percent in ((2.0, 80.0), (3.0, 90.0), (4.0, 95.5)):
        meters.feed(busy(percent), later(second))
    assert meters.end("a") == 88.5


def test_sample_window_before_start_is_ignored() -> None:
    meters = Meters()
    meters.begin("a", "device_0")
    meters.feed(busy(100.0), later(-5.0))
    meters.feed(busy(100.0), later(SETTLE_SECONDS / 2))
    assert meters.end("a") is None
    meters.begin("a", "device_0")
    meters.feed(busy(100.0), later(SETTLE_SECONDS / 2))
    meters.feed(busy(40.0), later(SETTLE_SECONDS + 0.1))
    assert meters.end("a") == 40.0


def test_idle_gpu_is_0_not_none() -> None:
    meters = Meters()
    meters.begin("a", "device_0")
    meters.feed(busy(0.0), later(2.0))
    assert meters.end("a") == 0.0


@pytest.mark.parametrize("figures", [{}, busy(None), {"device_0": NOTHING}, busy(50.0, "device_1")])
def test_meter_without_samples_of_its_gpu_is_none(figures: dict[str, GpuFigures]) -> None:
    meters = Meters()
    meters.begin("a", "device_0")
    meters.feed(figures, later(2.0))
    assert meters.end("a") is None


def test_only_tasks_that_shared_a_gpu_get_none() -> None:
    meters = Meters()
    meters.begin("first", "device_0")
    meters.begin("beside", "device_1")
    meters.feed({**busy(70.0), **busy(30.0, "device_1")}, later(2.0))
    meters.begin("second", "device_0")
    assert meters.end("second") is None
    meters.feed({**busy(70.0), **busy(30.0, "device_1")}, later(3.0))
    assert meters.end("first") is None
    assert meters.end("beside") == 30.0


def test_unknown_and_ended_meters_are_none() -> None:
    meters = Meters()
    assert meters.end("never") is None
    assert not meters.busy
    meters.begin("a", "device_0")
    assert meters.busy
    meters.end("a")
    assert not meters.busy
    meters.begin("b", "device_0")
    meters.feed(busy(60.0), later(2.0))
    assert meters.end("b") == 60.0, "it was alone: a had ended"
