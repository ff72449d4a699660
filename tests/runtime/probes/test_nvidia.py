from __future__ import annotations

import inspect
import logging
import sys
from dataclasses import replace

import pynvml
import pytest

from openruntime_jupyter.runtime.metrics.gpu.base import NOTHING, Gpu, GpuFigures, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.nvidia import NvidiaProbe
from tests.runtime.probes.fake_nvml import CODES, GIB, NOT_SUPPORTED, Fails, FakeGpu, FakeNvml, parted

RTX = "NVIDIA GeForce RTX 4090"
T4 = "Tesla T4"
A100 = "NVIDIA A100-SXM4-80GB"


def mlx(*names: str) -> list[Gpu]:
    """MLX's GPUs in its order."""
    return [Gpu(f"device_{index}", index, name, ("cuda", "mlx")) for index, name in enumerate(names)]


def cards(*names: str) -> list[FakeGpu]:
    """NVML's GPUs in its order; each is as warm as its place, which is how the tests know it again."""
    return [FakeGpu(name, f"GPU-{index}{index}-uuid-{index}", celsius=index) for index, name in enumerate(names)]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def put(*gpus: FakeGpu, init: Fails | None = None) -> FakeNvml:
        module = FakeNvml(*gpus, init=init)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


def places(probe: NvidiaProbe) -> dict[str, float | None]:
    """Which card stands behind which of MLX's devices."""
    return {key: figures.temperature for key, figures in probe.read().items()}


# What it reads


def test_every_figure_comes_in_its_unit(install) -> None:
    install(FakeGpu())
    assert NvidiaProbe(mlx(RTX), {}).read() == {"device_0": GpuFigures(87.0, 24 * GIB, 6 * GIB, 61.0, 312.45)}


@pytest.mark.parametrize("name", [name for name in CODES if name != "NVML_ERROR_NOT_FOUND"])
@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ("utilization", {"utilization": None}),
        ("used", {"memory_total": None, "memory_used": None}),
        ("celsius", {"temperature": None}),
        ("milliwatts", {"power": None}),
    ],
)
def test_a_figure_that_fails_is_none_and_takes_no_other_along(install, name: str, answer: str, lost: dict[str, None]) -> None:
    card = FakeGpu()
    install(card)
    probe = NvidiaProbe(mlx(RTX), {})
    whole = probe.read()["device_0"]
    setattr(card, answer, Fails(name))
    assert probe.read()["device_0"] == replace(whole, **lost)


def test_a_gpu_that_is_lost_later_on_has_no_figures_and_the_others_keep_theirs(install) -> None:
    first, second = cards(RTX, RTX)
    install(first, second)
    probe = NvidiaProbe(mlx(RTX, RTX), {})
    first.lose()
    figures = probe.read()
    assert figures["device_0"] == NOTHING
    assert figures["device_1"].utilization == 87.0


def test_a_percentage_that_is_none_is_left_out(install) -> None:
    install(FakeGpu(utilization=4_294_967_295))
    assert NvidiaProbe(mlx(RTX), {}).read()["device_0"].utilization is None


def test_a_function_that_an_old_pynvml_has_not_got_costs_its_own_figure_only(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeGpu(celsius=Fails("NVML_ERROR_FUNCTION_NOT_FOUND")))
    probe = NvidiaProbe(mlx(RTX), {})
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTemperatureV")
    figures = probe.read()["device_0"]
    assert figures.temperature is None
    assert figures.power == 312.45


def test_the_temperature_comes_from_the_newer_function_where_the_older_is_gone(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeGpu())
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetTemperature", lambda self, handle, sensor: (_ for _ in ()).throw(self.NVMLError(13)))
    assert NvidiaProbe(mlx(RTX), {}).read()["device_0"].temperature == 61.0


def test_handles_are_kept_and_each_kind_of_failure_is_told_once(install, caplog: pytest.LogCaptureFixture) -> None:
    nvml = install(FakeGpu(milliwatts=Fails("NVML_ERROR_NOT_SUPPORTED")))
    probe = NvidiaProbe(mlx(RTX), {})
    lookups = nvml.lookups
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            probe.read()
    assert nvml.lookups == lookups
    assert sum("power" in message for message in caplog.messages) == 1


def test_closing_gives_the_library_back(install) -> None:
    nvml = install(FakeGpu())
    probe = NvidiaProbe(mlx(RTX), {})
    assert nvml.opened == 1
    probe.close()
    assert nvml.opened == 0


# Where it can't be used


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
def test_a_driver_that_does_not_answer_is_said_with_what_to_do(install, name: str, advice: str) -> None:
    install(FakeGpu(), init=Fails(name))
    with pytest.raises(ProbeUnavailable, match=advice):
        NvidiaProbe(mlx(RTX), {})


def test_a_missing_package_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ProbeUnavailable, match=r"pip install 'openruntime-jupyter\[cuda\]'"):
        NvidiaProbe(mlx(RTX), {})


def test_a_library_that_breaks_while_devices_are_looked_up_is_closed_again(install, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(FakeGpu())
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetCount", lambda self: (_ for _ in ()).throw(self.NVMLError(999)))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {})
    assert nvml.opened == 0


# Which GPU is whose


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, {"device_0": 0, "device_1": 1, "device_2": 2}),
        ("2,0", {"device_0": 2, "device_1": 0}),
        (" 1 , 2", {"device_0": 1, "device_1": 2}),
        ("1,-1,2", {"device_0": 1}),
        ("0,9,1", {"device_0": 0}),
        ("GPU-22-uuid-2,GPU-00", {"device_0": 2, "device_1": 0}),
        ("GPU-11,nonsense,GPU-00", {"device_0": 1}),
    ],
)
def test_cudas_list_of_visible_devices_is_followed(install, setting: str | None, expected: dict[str, float]) -> None:
    install(*cards(RTX, RTX, RTX))
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert places(NvidiaProbe(mlx(RTX, RTX, RTX), environment)) == expected


@pytest.mark.parametrize("setting", ["", "-1", "GPU-", "GPU-nope", "MIG-nope"])
def test_a_list_that_names_none_for_sure_gives_no_figures(install, setting: str) -> None:
    nvml = install(*cards(RTX, RTX))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {"CUDA_VISIBLE_DEVICES": setting})
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"device_0": 1}),  # the fastest first, as CUDA does by itself: known by name, and the two T4 can't be told apart
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {"device_0": 0, "device_1": 1, "device_2": 2}),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"device_0": 1}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-22-uuid-2"}, {"device_0": 2}),
    ],
)
def test_among_different_models_only_what_is_sure_is_told(install, environment: dict[str, str], expected: dict[str, float]) -> None:
    install(*cards(T4, RTX, T4))
    assert places(NvidiaProbe(mlx(RTX, T4, T4), environment)) == expected


def test_one_gpu_is_known_whatever_its_name_is(install) -> None:
    install(FakeGpu(Fails("NVML_ERROR_NOT_SUPPORTED"), Fails("NVML_ERROR_NOT_SUPPORTED"), celsius=0))
    assert places(NvidiaProbe(mlx("Graphics Device"), {})) == {"device_0": 0}


def test_gpus_that_this_user_may_not_open_are_not_counted_as_cuda_does_not_count_them(install) -> None:
    first, second = cards(RTX, RTX)
    first.handle = Fails("NVML_ERROR_NO_PERMISSION")
    install(first, second)
    assert places(NvidiaProbe(mlx(RTX), {})) == {"device_0": 1}


def test_beside_a_gpu_that_is_lost_only_one_named_by_its_uuid_is_sure(install) -> None:
    first, second = cards(RTX, RTX)
    first.handle = Fails("NVML_ERROR_GPU_IS_LOST")
    install(first, second)
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(RTX), {})
    assert places(NvidiaProbe(mlx(RTX), {"CUDA_VISIBLE_DEVICES": "GPU-11-uuid-1"})) == {"device_0": 1}


# MIG


def test_of_a_gpu_in_parts_cudas_is_the_first_with_its_own_memory_and_the_chips_temperature(install) -> None:
    install(parted(FakeGpu(A100, celsius=44), 2))
    figures = NvidiaProbe(mlx(f"{A100} MIG 1g.10gb"), {}).read()["device_0"]
    assert figures == GpuFigures(None, 10 * GIB, 1 * GIB, 44.0, None)


def test_a_part_that_is_named_is_the_one(install) -> None:
    chip = parted(FakeGpu(A100, celsius=44), 2)
    install(*cards(A100), chip)
    probe = NvidiaProbe(mlx(f"{A100} MIG 1g.10gb"), {"CUDA_VISIBLE_DEVICES": chip.parts[1].uuid})
    assert probe.read()["device_0"].memory_used == 2 * GIB


def test_a_gpu_in_mig_mode_without_parts_can_be_told_nothing_of(install) -> None:
    install(parted(FakeGpu(A100), 0))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(A100), {})


def test_by_number_nothing_is_sure_where_one_of_several_gpus_is_in_parts(install) -> None:
    whole, chip = cards(A100, A100)
    install(whole, parted(chip, 1))
    with pytest.raises(ProbeUnavailable):
        NvidiaProbe(mlx(A100), {"CUDA_VISIBLE_DEVICES": "1"})


# The edge is the real one


def test_what_the_fake_has_is_what_the_real_module_has() -> None:
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


def test_the_real_module_says_why_it_reads_nothing_or_reads_a_gpu() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ProbeUnavailable, match="NVML can't be used"):
            NvidiaProbe(mlx(RTX), {})
        return
    probe = NvidiaProbe(mlx(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    figures = probe.read()["device_0"]
    assert figures.memory_used is None or 0 <= figures.memory_used <= (figures.memory_total or 0)
    assert figures.utilization is None or 0 <= figures.utilization <= 100
    probe.close()
