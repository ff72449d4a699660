"""Fake `pynvml` that returns values or raises an NVMLError with a code, as documented by NVML's reference.

`test_nvidia.py` checks that every name here exists in the real module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

GIB = 1 << 30

CODES = {
    "NVML_ERROR_UNINITIALIZED": 1,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_DRIVER_NOT_LOADED": 9,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_GPU_IS_LOST": 15,
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
    "NVML_ERROR_UNKNOWN": 999,
}
NOT_SUPPORTED = CODES["NVML_ERROR_NOT_SUPPORTED"]


class NVMLError(Exception):
    """Error like pynvml's, with the code in `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return next((name for name, value in CODES.items() if value == self.value), f"code {self.value}")


@dataclass(frozen=True)
class Fails:
    """Marker for a call that raises this error."""

    name: str


@dataclass(eq=False)
class FakeGpu:
    """Handle of a GPU or MIG device; any value may be a `Fails`."""

    name: Any = "NVIDIA GeForce RTX 4090"
    uuid: Any = "GPU-11111111-aaaa-bbbb-cccc-000000000000"
    utilization: Any = 87
    total: int = 24 * GIB
    used: Any = 6 * GIB
    celsius: Any = 61
    milliwatts: Any = 312_450
    handle: Any = None
    mig: Any = Fails("NVML_ERROR_NOT_SUPPORTED")
    parts: list[FakeGpu] = field(default_factory=list)
    chip: FakeGpu | None = None

    def lose(self) -> None:
        """Make every call fail, as for a GPU that has fallen off the bus."""
        lost = Fails("NVML_ERROR_GPU_IS_LOST")
        self.utilization = self.used = self.celsius = self.milliwatts = lost


def mig_part(chip: FakeGpu, number: int) -> FakeGpu:
    """Return a MIG device, which has only memory."""
    no = Fails("NVML_ERROR_NOT_SUPPORTED")
    part = FakeGpu(
        name=f"{chip.name} MIG 1g.10gb",
        uuid=f"MIG-2222222{number}-aaaa-bbbb-cccc-000000000000",
        utilization=no,
        total=10 * GIB,
        used=number * GIB,
        celsius=no,
        milliwatts=no,
        chip=chip,
    )
    chip.parts.append(part)
    return part


def parted(chip: FakeGpu, parts: int) -> FakeGpu:
    """Return `chip` in MIG mode, which reports no utilisation."""
    chip.mig, chip.utilization = [1, 1], Fails("NVML_ERROR_NOT_SUPPORTED")
    for number in range(1, parts + 1):
        mig_part(chip, number)
    return chip


class FakeNvml(ModuleType):
    """Fake module. `init` is None or the error of `nvmlInit`; `opened` counts the calls of `nvmlInit` without a shutdown."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *gpus: FakeGpu, init: Fails | None = None) -> None:
        super().__init__("pynvml")
        self.gpus = list(gpus)
        self.init = init
        self.opened = 0
        self.lookups = 0
        for name, value in CODES.items():
            setattr(self, name, value)

    def nvmlInit(self) -> None:
        _tell(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self.lookups += 1
        _tell(self.gpus[index].handle)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        everything = [*self.gpus, *(part for gpu in self.gpus for part in gpu.parts)]
        return _first([gpu for gpu in everything if gpu.uuid == uuid])

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return _tell(handle.name)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return _tell(handle.uuid)

    def nvmlDeviceGetMigMode(self, device: FakeGpu) -> list[int]:
        return _tell(device.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, device: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeGpu, index: int) -> FakeGpu:
        # Instance indices may have gaps; here the first is missing.
        return _first(device.parts[index - 1 : index] if index else [])

    def nvmlDeviceIsMigDeviceHandle(self, device: FakeGpu) -> bool:
        return device.chip is not None

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: FakeGpu) -> FakeGpu:  # noqa: N803 - the real one's name
        assert migDevice.chip is not None
        return migDevice.chip

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=_tell(handle.utilization), memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:
        used = _tell(handle.used)
        return SimpleNamespace(total=handle.total, free=handle.total - used, used=used)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return _tell(handle.celsius)

    def nvmlDeviceGetTemperatureV(self, handle: FakeGpu, sensor: int) -> int:
        return _tell(handle.celsius)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return _tell(handle.milliwatts)


def _tell(answer: Any) -> Any:
    if isinstance(answer, Fails):
        raise NVMLError(CODES[answer.name])
    return answer


def _first(found: list[FakeGpu]) -> FakeGpu:
    if not found:
        raise NVMLError(CODES["NVML_ERROR_NOT_FOUND"])
    return found[0]
