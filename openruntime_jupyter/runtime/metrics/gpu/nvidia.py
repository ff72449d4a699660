"""Probe of NVIDIA GPUs by NVML, through the optional package `nvidia-ml-py` (imported as `pynvml`, only if MLX has a CUDA device)."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings, ProbeUnavailable, percent

log = logging.getLogger(__name__)

MISSING = "metrics of NVIDIA GPUs need the package nvidia-ml-py: pip install 'openruntime-jupyter[cuda]'"
ADVICE = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 is missing; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    "NVML_ERROR_DRIVER_NOT_LOADED": "the driver is not loaded: see `nvidia-smi`",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the driver was updated while it ran: restart the machine",
    "NVML_ERROR_NO_PERMISSION": "this user has no permission for /dev/nvidiactl",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU or MIG device of NVML; name and UUID are None if NVML does not report them."""

    handle: Any
    name: str | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class _Device:
    """NVML's handle of an MLX device. `chip` is the whole GPU: the handle itself, or the GPU of a MIG device, None if unknown."""

    handle: Any
    chip: Any

    @property
    def is_part(self) -> bool:
        return self.handle is not self.chip


class NvidiaProbe:
    """Probe that keeps the NVML handles of MLX's devices. Raises `ProbeUnavailable` if NVML cannot be used."""

    name = "nvml"

    def __init__(self, gpus: Sequence[Gpu], environment: Mapping[str, str] | None = None) -> None:
        self._nvml = _load()
        self._logged: set[tuple[str, str]] = set()
        try:
            self._devices = self._find(gpus, os.environ if environment is None else environment)
        except Exception as problem:  # whatever the error, NVML was opened and must be closed
            self.close()
            raise ProbeUnavailable(f"cannot match NVML's devices with MLX's: {problem}") from problem
        if not self._devices:
            self.close()
            raise ProbeUnavailable("no NVML device can be matched with certainty to an MLX device; try CUDA_DEVICE_ORDER=PCI_BUS_ID")

    def read(self) -> dict[str, GpuReadings]:
        """Return the current metrics by `Gpu.key`."""
        return {key: self._figures(device) for key, device in self._devices.items()}

    def close(self) -> None:
        """Shut NVML down for this probe; NVML counts its users, so others in this process are not affected."""
        self._try("close", self._nvml.nvmlShutdown)

    def _figures(self, device: _Device) -> GpuReadings:
        nvml = self._nvml
        rates = self._try("utilization", nvml.nvmlDeviceGetUtilizationRates, device.handle)
        memory = self._try("memory", nvml.nvmlDeviceGetMemoryInfo, device.handle)
        # MIG devices share the chip's temperature. Its power is the sum over all parts and unknown for a single one.
        milliwatts = None if device.is_part else self._try("power", nvml.nvmlDeviceGetPowerUsage, device.handle)
        return GpuReadings(
            utilization=percent(rates.gpu) if rates is not None else None,
            memory_total=int(memory.total) if memory is not None else None,
            memory_used=int(memory.used) if memory is not None else None,
            temperature=self._temperature(device.chip),
            power=milliwatts / 1000 if milliwatts is not None else None,
        )

    def _temperature(self, chip: Any) -> float | None:
        nvml = self._nvml
        if chip is None:
            return None
        degrees = self._try("temperature", nvml.nvmlDeviceGetTemperature, chip, nvml.NVML_TEMPERATURE_GPU)
        if degrees is None and hasattr(nvml, "nvmlDeviceGetTemperatureV"):  # replaces the former in CUDA 14
            degrees = self._try("temperature (V)", nvml.nvmlDeviceGetTemperatureV, chip, nvml.NVML_TEMPERATURE_GPU)
        return float(degrees) if degrees is not None else None

    def _try(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of `function`, or None if it fails; each kind of failure is logged once."""
        try:
            return function(*arguments)
        except Exception as problem:  # NVMLError, or an error of an older pynvml or driver; other metrics must not be affected
            failure = (what, type(problem).__name__)
            if failure not in self._logged:
                self._logged.add(failure)
                log.info("NVML cannot read the %s of a GPU: %s", what, problem)
            return None

    # Matching: NVML lists all GPUs in PCI bus order, CUDA the visible ones in its own order.

    def _find(self, gpus: Sequence[Gpu], environment: Mapping[str, str]) -> dict[str, _Device]:
        """Return the certain matches by `Gpu.key`. Uncertain ones are omitted, because metrics of the wrong GPU are worse than none."""
        candidates, countable = self._candidates()
        listed = self._visible(candidates, environment.get("CUDA_VISIBLE_DEVICES"))
        names = [candidate.name for candidate in candidates]
        alike = len(names) == 1 or (len(set(names)) == 1 and None not in names)
        # Without PCI_BUS_ID, CUDA puts the fastest GPU first, so that only equal or unique names are certain.
        same_order = countable and (environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or alike)
        devices: dict[str, _Device | None] = {}
        for gpu in gpus:
            if gpu.index >= len(listed):
                continue
            candidate, certain = listed[gpu.index]
            if certain or same_order:
                devices[gpu.key] = self._device(candidate.handle)
            elif countable and names.count(gpu.name) == 1:
                devices[gpu.key] = self._device(candidates[names.index(gpu.name)].handle)
        return {key: device for key, device in devices.items() if device is not None}

    def _candidates(self) -> tuple[list[Candidate], bool]:
        """Return NVML's GPUs in order, and whether CUDA lists the same ones, so that indices can be compared."""
        nvml = self._nvml
        gpus: list[Candidate] = []
        countable = True
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError as problem:
                # CUDA does not list GPUs that this user may not open. It is unknown if it lists a lost GPU.
                countable = countable and problem.value == nvml.NVML_ERROR_NO_PERMISSION
                log.info("NVML cannot open GPU %d: %s", index, problem)
            else:
                gpus.append(self._candidate(handle))
        # Which of several GPUs CUDA lists if one is partitioned is undocumented.
        parted = len(gpus) > 1 and any(self._is_parted(gpu.handle) for gpu in gpus)
        return gpus, countable and not parted

    def _visible(self, candidates: list[Candidate], setting: str | None) -> list[tuple[Candidate, bool]]:
        """Return CUDA's device list for a value of `CUDA_VISIBLE_DEVICES`; True for a UUID, which does not depend on the order.

        The value lists indices or UUIDs, which may be abbreviated. Like CUDA, ignore everything from the first unknown entry on.
        """
        if setting is None:
            return [(candidate, False) for candidate in candidates]
        found: list[tuple[Candidate, bool]] = []
        for entry in (part.strip() for part in setting.split(",")):
            by_number = entry.isdecimal() and int(entry) < len(candidates)
            candidate = candidates[int(entry)] if by_number else self._named(entry, candidates)
            if candidate is None:
                break
            found.append((candidate, not by_number))
        return found

    def _named(self, entry: str, candidates: list[Candidate]) -> Candidate | None:
        if entry.startswith("MIG-"):
            handle = self._try(f"handle of {entry}", self._nvml.nvmlDeviceGetHandleByUUID, entry)
            return self._candidate(handle) if handle is not None else None
        matching = [candidate for candidate in candidates if entry.startswith("GPU-") and (candidate.uuid or "").startswith(entry)]
        return matching[0] if len(matching) == 1 else None

    def _candidate(self, handle: Any) -> Candidate:
        name = self._try("name", self._nvml.nvmlDeviceGetName, handle)
        uuid = self._try("UUID", self._nvml.nvmlDeviceGetUUID, handle)
        return Candidate(handle, name, uuid)

    def _is_parted(self, handle: Any) -> bool:
        """Return whether the GPU is in MIG mode; False if the GPU or the driver does not support MIG."""
        mode = self._try("MIG mode", self._nvml.nvmlDeviceGetMigMode, handle)
        return mode is not None and bool(mode[0])

    def _device(self, handle: Any) -> _Device | None:
        """Return the device as CUDA uses it: for a GPU in MIG mode its first MIG device, or None without one."""
        nvml = self._nvml
        if self._try("kind", nvml.nvmlDeviceIsMigDeviceHandle, handle):
            chip = self._try("chip", nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)
            return _Device(handle, chip)
        if not self._is_parted(handle):
            return _Device(handle, handle)
        for index in range(self._try("number of MIG devices", nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._try("MIG device", nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if part is not None:
                return _Device(part, handle)
        return None


def _load() -> Any:
    """Import and initialise `pynvml`."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as problem:
        raise ProbeUnavailable(MISSING) from problem
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as problem:
        advice = next((text for name, text in ADVICE.items() if getattr(nvml, name) == problem.value), None)
        raise ProbeUnavailable(f"cannot use NVML: {problem}" + (f" ({advice})" if advice else "")) from problem
    return nvml
