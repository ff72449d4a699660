from __future__ import annotations

import ctypes
import platform
from typing import Any

import psutil
import pytest

from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings, ProbeUnavailable, apple
from openruntime_jupyter.runtime.metrics.gpu.apple import AppleProbe, Registry
from tests.runtime.probes.fake_iokit import RECORDED, TOO_LARGE, Mac

GPU = Gpu("device_0", 0, "Apple M3 Pro", ("metal", "mlx", "unified_memory"))
GIB = 1 << 30


def accelerator(statistics: Any) -> dict[str, Any]:
    """Return the properties of a service."""
    return {"IOClass": "AGXAcceleratorG15X", "PerformanceStatistics": statistics}


def probe_of(mac: Mac) -> AppleProbe:
    return AppleProbe([GPU], Registry(mac.libraries), lambda: 36 * GIB)


def figures_of(*statistics: Any) -> GpuReadings:
    return probe_of(Mac(*map(accelerator, statistics))).read()["device_0"]


@pytest.mark.parametrize(("chip", "percent", "used"), [("M3 Pro", 16.0, 568164352), ("M1 Pro", 34.0, 7688503296)])
def test_recorded_statistics_give_utilization_and_memory(chip: str, percent: float, used: int) -> None:
    assert figures_of(RECORDED[chip]) == GpuReadings(percent, 36 * GIB, used)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"In use system memory": 5, "Renderer Utilization %": 80}, GpuReadings(None, 36 * GIB, 5)),
        ({"Device Utilization %": 0}, GpuReadings(0.0, 36 * GIB, None)),
        ({"Device Utilization %": 250, "In use system memory": 5}, GpuReadings(None, 36 * GIB, 5)),
        ({"Device Utilization %": -1, "In use system memory": 5}, GpuReadings(None, 36 * GIB, 5)),
        ({"Device Utilization %": "16", "In use system memory": 5}, GpuReadings(None, 36 * GIB, 5)),
        ({"Device Utilization %": 16, "In use system memory": TOO_LARGE}, GpuReadings(16.0, 36 * GIB, None)),
    ],
)
def test_missing_or_invalid_metric_is_none(left: dict[str, Any], expected: GpuReadings) -> None:
    assert figures_of(left) == expected


def test_busy_service_is_the_gpu() -> None:
    assert figures_of({"Device Utilization %": 0, "In use system memory": 0}, RECORDED["M3 Pro"], {}).utilization == 16.0


@pytest.mark.parametrize("accelerators", [(), ({"IOClass": "AppleParavirtGPU"},), (accelerator("not a dictionary"),), (accelerator({}),)])
def test_mac_without_statistics_is_unavailable(accelerators: tuple[dict[str, Any], ...]) -> None:
    mac = Mac(*accelerators)
    with pytest.raises(ProbeUnavailable, match="virtual machine"):
        probe_of(mac)
    assert not mac.leaked


@pytest.mark.parametrize("trouble", [{"status": -536870212}, {"known": False}, {"strings": False}])
def test_unresponsive_registry_is_unavailable_and_leaks_nothing(trouble: dict[str, Any]) -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]), **trouble)
    with pytest.raises(ProbeUnavailable, match="does not respond"):
        probe_of(mac)
    assert not mac.leaked


def test_many_samples_leak_no_references() -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]), {}, accelerator("no dictionary"), accelerator(RECORDED["M1 Pro"]))
    probe = probe_of(mac)
    held = mac.leaked
    assert len(held) == 3, "the names of the dictionary and the two metrics, created once"
    for _ in range(1000):
        probe.read()
    assert mac.leaked == held
    probe.close()
    assert not mac.leaked


def test_registry_that_stops_responding_raises_os_error() -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]))
    probe = probe_of(mac)
    mac.status = 268435459
    with pytest.raises(OSError, match="0x10000003"):
        probe.read()
    mac.status = 0
    assert probe.read()["device_0"].utilization == 16.0


def test_nothing_is_loaded_except_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"loaded {path}"))
    with pytest.raises(ProbeUnavailable, match="macOS"):
        Registry()


def test_framework_load_error_names_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(apple, "FRAMEWORK", "/nowhere/{0}")
    with pytest.raises(ProbeUnavailable, match="/nowhere/IOKit"):
        Registry()


@pytest.mark.skipif(platform.system() != "Darwin", reason="reads the GPU of a Mac")
def test_real_mac_returns_plausible_metrics() -> None:
    try:
        probe = AppleProbe([GPU])
    except ProbeUnavailable as problem:
        pytest.skip(str(problem))
    figures = probe.read()["device_0"]
    assert figures.memory_total == psutil.virtual_memory().total
    assert figures.utilization is None or 0 <= figures.utilization <= 100
    assert figures.memory_used is None or 0 <= figures.memory_used <= figures.memory_total
    probe.close()
