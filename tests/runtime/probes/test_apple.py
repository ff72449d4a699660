from __future__ import annotations

import ctypes
import platform
from typing import Any

import psutil
import pytest

from openruntime_jupyter.runtime.metrics.gpu import iokit
from openruntime_jupyter.runtime.metrics.gpu.apple import AppleProbe
from openruntime_jupyter.runtime.metrics.gpu.base import Gpu, GpuFigures, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.iokit import Registry
from tests.runtime.probes.fake_iokit import RECORDED, TOO_LARGE, Mac

GPU = Gpu("device_0", 0, "Apple M3 Pro", ("metal", "mlx", "unified_memory"))
GIB = 1 << 30


def accelerator(statistics: Any) -> dict[str, Any]:
    """The properties of a service."""
    return {"IOClass": "AGXAcceleratorG15X", "PerformanceStatistics": statistics}


def probe_of(mac: Mac) -> AppleProbe:
    return AppleProbe([GPU], Registry(mac.libraries), lambda: 36 * GIB)


def figures_of(*statistics: Any) -> GpuFigures:
    return probe_of(Mac(*map(accelerator, statistics))).read()["device_0"]


# What it makes of the figures


@pytest.mark.parametrize(("chip", "percent", "used"), [("M3 Pro", 16.0, 568164352), ("M1 Pro", 34.0, 7688503296)])
def test_a_recorded_answer_gives_utilisation_and_memory_and_nothing_else(chip: str, percent: float, used: int) -> None:
    assert figures_of(RECORDED[chip]) == GpuFigures(percent, 36 * GIB, used)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"In use system memory": 5, "Renderer Utilization %": 80}, GpuFigures(None, 36 * GIB, 5)),
        ({"Device Utilization %": 0}, GpuFigures(0.0, 36 * GIB, None)),
        ({"Device Utilization %": 250, "In use system memory": 5}, GpuFigures(None, 36 * GIB, 5)),
        ({"Device Utilization %": -1, "In use system memory": 5}, GpuFigures(None, 36 * GIB, 5)),
        ({"Device Utilization %": "16", "In use system memory": 5}, GpuFigures(None, 36 * GIB, 5)),
        ({"Device Utilization %": 16, "In use system memory": TOO_LARGE}, GpuFigures(16.0, 36 * GIB, None)),
    ],
)
def test_a_figure_that_is_absent_or_no_such_number_is_none_and_takes_no_other_along(left: dict[str, Any], expected: GpuFigures) -> None:
    assert figures_of(left) == expected


def test_of_several_services_the_one_that_works_is_the_gpu() -> None:
    assert figures_of({"Device Utilization %": 0, "In use system memory": 0}, RECORDED["M3 Pro"], {}).utilization == 16.0


@pytest.mark.parametrize("accelerators", [(), ({"IOClass": "AppleParavirtGPU"},), (accelerator("not a dictionary"),), (accelerator({}),)])
def test_a_mac_whose_driver_tells_nothing_says_so_at_once(accelerators: tuple[dict[str, Any], ...]) -> None:
    mac = Mac(*accelerators)
    with pytest.raises(ProbeUnavailable, match="virtual machine"):
        probe_of(mac)
    assert not mac.leaked


@pytest.mark.parametrize("trouble", [{"status": -536870212}, {"known": False}, {"strings": False}])
def test_a_registry_that_does_not_answer_is_no_probe_and_leaves_nothing_held(trouble: dict[str, Any]) -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]), **trouble)
    with pytest.raises(ProbeUnavailable, match="does not answer"):
        probe_of(mac)
    assert not mac.leaked


# Who owns what


def test_a_thousand_samples_hold_no_more_than_the_first_and_closing_releases_the_rest() -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]), {}, accelerator("no dictionary"), accelerator(RECORDED["M1 Pro"]))
    probe = probe_of(mac)
    held = mac.leaked
    assert len(held) == 3, "the names of the dictionary and of the two figures, made once"
    for _ in range(1000):
        probe.read()
    assert mac.leaked == held
    probe.close()
    assert not mac.leaked


def test_a_registry_that_stops_to_answer_raises_what_the_sampler_survives() -> None:
    mac = Mac(accelerator(RECORDED["M3 Pro"]))
    probe = probe_of(mac)
    mac.status = 268435459
    with pytest.raises(OSError, match="0x10000003"):
        probe.read()
    mac.status = 0
    assert probe.read()["device_0"].utilization == 16.0


# The real frameworks


def test_elsewhere_than_on_macos_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"loaded {path}"))
    with pytest.raises(ProbeUnavailable, match="macOS"):
        Registry()


def test_frameworks_that_can_not_be_loaded_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(iokit, "FRAMEWORK", "/nowhere/{0}")
    with pytest.raises(ProbeUnavailable, match="/nowhere/IOKit"):
        Registry()


@pytest.mark.skipif(platform.system() != "Darwin", reason="reads the GPU of a Mac")
def test_a_real_mac_tells_figures_that_can_be() -> None:
    try:
        probe = AppleProbe([GPU])
    except ProbeUnavailable as problem:
        pytest.skip(str(problem))
    figures = probe.read()["device_0"]
    assert figures.memory_total == psutil.virtual_memory().total
    assert figures.utilization is None or 0 <= figures.utilization <= 100
    assert figures.memory_used is None or 0 <= figures.memory_used <= figures.memory_total
    probe.close()
