from __future__ import annotations

import inspect
import logging
import sys
from dataclasses import replace

import pynvml
import pytest

from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.nvidia import NvidiaProbe
from tests.runtime.probes.fake_nvml import CODES, GIB, NOT_SUPPORTED, Fails, FakeGpu, FakeNvml, parted

RTX = "NVIDIA GeForce RTX 4090"
T4 = "Tesla T4"
A100 = "NVIDIA A100-SXM4-80GB"


def mlx(*names: str) -> list[Gpu]:
    """Return MLX's GPUs in order."""
    return [Gpu(f"device_{index}", index, name, ("cuda", "mlx")) for index, name in enumerate(names)]


def cards(*names: str) -> list[FakeGpu]:
    """Return NVML's GPUs in order; the temperature of each is its index, which identifies it."""
    return [FakeGpu(name, f"GPU-{index}{index}-uuid-{index}", celsius=index) for index, name in enumerate(names)]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def put(*gpus: FakeGpu, init: Fails | None = None) -> FakeNvml:
        module = FakeNvml(*gpus, init=init)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


def places(probe: NvidiaProbe) -> dict[str, float | None]:
    """Return the index of the NVML GPU matched to each MLX device."""
    return {key: figures.temperature for key, figures in probe.read().items()}


def test_metrics_have_their_units(install) -> None:
    install(FakeGpu())
    assert NvidiaProbe(mlx(RTX), {}).read() == {"device_0": GpuReadings(87.0, 24 * GIB, 6 * GIB, 61.0, 312.45)}


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ("utilization", {"utilization": None}),
        ("used", {"memory_total": None, "memory_used": None}),
        ("celsius", {"temperature": None}),
        ("milliwatts", {"power": None}),
    ],
)
def test_failing_metric_is_none_without_affecting_others(install, answer: str, lost: dict[str, None]) -> None:
    card = FakeGpu()
    install(card)
    probe = NvidiaProbe(mlx(RTX), {})
    whole = probe.read()["device_0"]
    setattr(card, answer, Fails("NVML_ERROR_UNKNOWN"))
    assert probe.read()["device_0"] == replace(whole, **lost)


def test_invalid_percentage_is_none(install) -> None:
    install(FakeGpu(utilization=4_294_967_295))
    assert NvidiaProbe(mlx(RTX), {}).read()["device_0"].utilization is None


def test_missing_pynvml_function_loses_only_its_metric(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeGpu())
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetTemperature", lambda self, handle, sensor: (_ for _ in ()).throw(self.NVMLError(13)))
    probe = NvidiaProbe(mlx(RTX), {})
    assert probe.read()["device_0"].temperature == 61.0, "the newer function is used"
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTemperatureV")
    figures = probe.read()["device_0"]
    assert (figures.temperature, figures.power) == (None, 312.45)


def test_handles_are_cached_and_each_failure_is_logged_once(install, caplog: pytest.LogCaptureFixture) -> None:
    nvml = install(FakeGpu(milliwatts=Fails("NVML_ERROR_NOT_SUPPORTED")))
    probe = NvidiaProbe(mlx(RTX), {})
    lookups = nvml.lookups
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            probe.read()
    assert nvml.lookups == lookups
    assert sum("power" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "libnvidia-ml"),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "nvidia-smi"),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "restart the machine"),
        ("NVML_ERROR_NO_PERMISSION", "/dev/nvidiactl"),
        ("NVML_ERROR_UNKNOWN", "NVML_ERROR_UNKNOWN"),
    ],
)
def test_driver_error_has_advice(install, name: str, advice: str) -> None:
    install(FakeGpu(), init=Fails(name))
    with pytest.raises(ProbeUnavailable, match=advice):
        NvidiaProbe(mlx(RTX), {})


def test_missing_package_error_names_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ProbeUnavailable, match=r"pip install 'openruntime-jupyter\[cuda\]'"):
        NvidiaProbe(mlx(RTX), {})


def test_nvml_is_shut_down_if_device_lookup_fails(install, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(FakeGpu())
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetCount", lambda self: (_ for _ in ()).throw(self.NVMLError(999)))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {})
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, {"device_0": 0, "device_1": 1, "device_2": 2}),
        (" 2 , 0", {"device_0": 2, "device_1": 0}),
        ("1,-1,2", {"device_0": 1}),
        ("GPU-22-uuid-2,GPU-00", {"device_0": 2, "device_1": 0}),
        ("GPU-11,nonsense,GPU-00", {"device_0": 1}),
    ],
)
def test_cuda_visible_devices_is_applied(install, setting: str | None, expected: dict[str, float]) -> None:
    install(*cards(RTX, RTX, RTX))
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert places(NvidiaProbe(mlx(RTX, RTX, RTX), environment)) == expected


@pytest.mark.parametrize("setting", ["", "-1", "GPU-nope"])
def test_uncertain_device_list_gives_no_metrics(install, setting: str) -> None:
    nvml = install(*cards(RTX, RTX))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {"CUDA_VISIBLE_DEVICES": setting})
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"device_0": 1}),  # CUDA's default, fastest first: matched by name, and the two T4 cannot be distinguished
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {"device_0": 0, "device_1": 1, "device_2": 2}),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"device_0": 1}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-22-uuid-2"}, {"device_0": 2}),
    ],
)
def test_different_gpu_models_match_only_with_certainty(install, environment: dict[str, str], expected: dict[str, float]) -> None:
    install(*cards(T4, RTX, T4))
    assert places(NvidiaProbe(mlx(RTX, T4, T4), environment)) == expected


def test_single_gpu_matches_with_any_name(install) -> None:
    install(FakeGpu(Fails("NVML_ERROR_NOT_SUPPORTED"), Fails("NVML_ERROR_NOT_SUPPORTED"), celsius=0))
    assert places(NvidiaProbe(mlx("Graphics Device"), {})) == {"device_0": 0}


def test_gpus_without_permission_are_not_counted(install) -> None:
    first, second = cards(RTX, RTX)
    first.handle = Fails("NVML_ERROR_NO_PERMISSION")
    install(first, second)
    assert places(NvidiaProbe(mlx(RTX), {})) == {"device_0": 1}


def test_with_lost_gpu_only_uuid_matches_are_certain(install) -> None:
    first, second = cards(RTX, RTX)
    first.handle = Fails("NVML_ERROR_GPU_IS_LOST")
    install(first, second)
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {})
    assert places(NvidiaProbe(mlx(RTX), {"CUDA_VISIBLE_DEVICES": "GPU-11-uuid-1"})) == {"device_0": 1}


def test_mig_gpu_uses_first_part_and_chip_temperature(install) -> None:
    install(parted(FakeGpu(A100, celsius=44), 2))
    figures = NvidiaProbe(mlx(f"{A100} MIG 1g.10gb"), {}).read()["device_0"]
    assert figures == GpuReadings(None, 10 * GIB, 1 * GIB, 44.0, None)


def test_mig_part_named_by_uuid_is_used(install) -> None:
    chip = parted(FakeGpu(A100, celsius=44), 2)
    install(*cards(A100), chip)
    probe = NvidiaProbe(mlx(f"{A100} MIG 1g.10gb"), {"CUDA_VISIBLE_DEVICES": chip.parts[1].uuid})
    assert probe.read()["device_0"].memory_used == 2 * GIB


def test_mig_gpu_without_parts_has_no_metrics(install) -> None:
    install(parted(FakeGpu(A100), 0))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(A100), {})


def test_index_is_uncertain_with_a_mig_gpu_among_several(install) -> None:
    whole, chip = cards(A100, A100)
    install(whole, parted(chip, 1))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(A100), {"CUDA_VISIBLE_DEVICES": "1"})


def test_fake_matches_real_pynvml() -> None:
    for name, value in CODES.items():
        assert getattr(pynvml, name) == value, name
    assert pynvml.NVML_TEMPERATURE_GPU == FakeNvml.NVML_TEMPERATURE_GPU
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(names) == 17
    for name in names:
        real = list(inspect.signature(getattr(pynvml, name)).parameters.values())
        ours = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        assert [parameter.name for parameter in real][: len(ours)] == ours, name
        assert all(parameter.default is not parameter.empty for parameter in real[len(ours) :]), name
    assert pynvml.NVMLError(NOT_SUPPORTED).value == NOT_SUPPORTED


def test_real_pynvml_reads_a_gpu_or_gives_reason() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ProbeUnavailable, match="cannot use NVML"):
            NvidiaProbe(mlx(RTX), {})
        return
    probe = NvidiaProbe(mlx(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    figures = probe.read()["device_0"]
    assert figures.memory_used is None or 0 <= figures.memory_used <= (figures.memory_total or 0)
    assert figures.utilization is None or 0 <= figures.utilization <= 100
    probe.close()
