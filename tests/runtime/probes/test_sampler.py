"""Sampler: choice of probes by capability, their failures, and the mean utilisation of a task."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

import pytest

from openruntime_jupyter.runtime.metrics.gpu import NOTHING, Gpu, GpuReadings, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.sampler import PROBES, SETTLE_SECONDS, Meters, Probes

CUDA = Gpu("device_0", 0, "NVIDIA GeForce RTX 4090", ("cuda", "mlx"))
METAL = Gpu("device_0", 0, "Apple M3 Pro", ("metal", "mlx", "unified_memory"))
OTHER = Gpu("device_1", 1, "Some GPU", ("rocm", "mlx"))


class Sound:
    """Probe that reads one metric."""

    name = "sound"

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.gpus = gpus
        self.closed = 0

    def read(self) -> dict[str, GpuReadings]:
        return {gpu.key: GpuReadings(utilization=5.0) for gpu in self.gpus}

    def close(self) -> None:
        self.closed += 1


class Breaking(Sound):
    """Probe that opens and then always fails."""

    name = "breaking"

    def read(self) -> dict[str, GpuReadings]:
        raise OSError("gone")

    def close(self) -> None:
        raise OSError("gone as well")


def refuses(gpus: Sequence[Gpu]) -> Sound:
    raise ProbeUnavailable("install this")


def crashes(gpus: Sequence[Gpu]) -> Sound:
    raise ValueError("a vendor's fault")


def test_gpu_is_read_by_probe_of_its_capability() -> None:
    probes = Probes([CUDA, OTHER], {"cuda": Sound, "metal": crashes})
    assert probes.read() == {"device_0": GpuReadings(utilization=5.0)}
    assert not probes.problems


def test_no_vendor_library_is_loaded_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Probes().read() == {}
    assert Probes([OTHER]).read() == {}


@pytest.mark.parametrize(("kind", "reason"), [(refuses, "install this"), (crashes, "ValueError: a vendor's fault")])
def test_failing_probe_is_omitted_with_its_reason(kind, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    second = Gpu("device_1", 0, "Apple M3 Pro", ("metal",))
    with caplog.at_level(logging.WARNING):
        probes = Probes([CUDA, second], {"cuda": kind, "metal": Sound})
    assert probes.read() == {"device_1": GpuReadings(utilization=5.0)}
    assert reason in probes.problems["device_0"]
    assert "device_1" not in probes.problems
    assert any(reason in message and CUDA.name in message for message in caplog.messages)


def test_probe_that_fails_later_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    second = Gpu("device_1", 0, "Apple M3 Pro", ("metal",))
    probes = Probes([CUDA, second], {"cuda": Breaking, "metal": Sound})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert probes.read() == {"device_1": GpuReadings(utilization=5.0)}
    assert sum("gone" in message for message in caplog.messages) == 1
    probes.close()
    assert probes.read() == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has what this misses")
def test_apple_gpus_are_read_by_iokit() -> None:
    assert "macOS" in Probes([METAL]).problems["device_0"]
    assert set(PROBES) == {"cuda", "metal"}


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
