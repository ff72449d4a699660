from __future__ import annotations

import time

import pytest

from openruntime_jupyter.runtime.metrics.gpu import NOTHING, GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import SETTLE_SECONDS, Meters


def busy(percent: float | None, gpu: str = "device_0") -> dict[str, GpuReadings]:
    return {gpu: GpuReadings(utilization=percent)}


def feed(meters: Meters, figures: dict[str, GpuReadings], seconds: float) -> None:
    """Feed a sample that is taken so many seconds from now."""
    meters.feed(figures, time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("samples", "mean"),
    [
        ([(2.0, busy(80.0)), (3.0, busy(90.0)), (4.0, busy(95.5))], 88.5),
        ([(2.0, busy(0.0))], 0.0),
        ([(-5.0, busy(100.0)), (SETTLE_SECONDS / 2, busy(100.0))], None),
        ([(SETTLE_SECONDS / 2, busy(100.0)), (SETTLE_SECONDS + 0.1, busy(40.0))], 40.0),
        ([(2.0, {}), (3.0, busy(None)), (4.0, {"device_0": NOTHING}), (5.0, busy(50.0, "device_1"))], None),
    ],
)
def test_meter_returns_mean_of_its_gpus_samples_during_run(samples: list[tuple[float, dict[str, GpuReadings]]], mean: float | None) -> None:
    meters = Meters()
    meters.begin("a", "device_0")
    for seconds, figures in samples:
        feed(meters, figures, seconds)
    assert meters.end("a") == mean


def test_only_tasks_that_shared_a_gpu_get_none() -> None:
    meters = Meters()
    meters.begin("first", "device_0")
    meters.begin("beside", "device_1")
    feed(meters, {**busy(70.0), **busy(30.0, "device_1")}, 2.0)
    meters.begin("second", "device_0")
    assert meters.end("second") is None
    feed(meters, {**busy(70.0), **busy(30.0, "device_1")}, 3.0)
    assert meters.end("first") is None
    assert meters.end("beside") == 30.0
    assert meters.end("never") is None
    assert not meters.busy
    meters.begin("alone", "device_0")
    assert meters.busy
    feed(meters, busy(60.0), 2.0)
    assert meters.end("alone") == 60.0
