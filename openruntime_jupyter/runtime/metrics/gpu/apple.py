"""Probe of Apple GPUs by the device registry (IOKit), without privileges and without starting a program for each sample.

The driver of every Apple GPU is an IOAccelerator with a dictionary PerformanceStatistics. Its keys are undocumented, so each of them
may be missing. Temperature and power are not among them. Tools that show these without sudo (macmon, and on PyPI `macmon-lib`, `actop`,
`apple-smi`) read the private IOReport framework and the SMC, whose contents differ between chips and releases; the two metrics are
therefore omitted for Apple GPUs rather than sometimes wrong.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings, ProbeUnavailable, percent

SERVICE = "IOAccelerator"
STATISTICS = "PerformanceStatistics"
UTILIZATION = "Device Utilization %"
IN_USE = "In use system memory"
"""Bytes in use by GPU work of all programs; `Alloc system memory`, their reserved bytes, is less informative."""

FRAMEWORK = "/System/Library/Frameworks/{0}.framework/{0}"
MAIN_PORT = 0
SUCCESS = 0
UTF_8 = 0x08000100
"""kCFStringEncodingUTF8."""
SIGNED_64 = 4
"""kCFNumberSInt64Type."""

Object = ctypes.c_uint32
"""io_object_t, a Mach port name; also io_iterator_t and io_registry_entry_t."""
Ref = ctypes.c_void_p
"""A CFTypeRef."""

Signatures = dict[str, tuple[Any, list[Any]]]
"""Result and arguments: without them ctypes cuts pointers to 32 bits."""

IOKIT: Signatures = {
    "IOServiceMatching": (Ref, [ctypes.c_char_p]),
    "IOServiceGetMatchingServices": (ctypes.c_int, [Object, Ref, ctypes.POINTER(Object)]),
    "IOIteratorNext": (Object, [Object]),
    "IOObjectRelease": (ctypes.c_int, [Object]),
    "IORegistryEntryCreateCFProperty": (Ref, [Object, Ref, Ref, ctypes.c_uint32]),
}
CORE_FOUNDATION: Signatures = {
    "CFStringCreateWithCString": (Ref, [Ref, ctypes.c_char_p, ctypes.c_uint32]),
    "CFDictionaryGetValue": (Ref, [Ref, Ref]),
    "CFGetTypeID": (ctypes.c_ulong, [Ref]),
    "CFDictionaryGetTypeID": (ctypes.c_ulong, []),
    "CFNumberGetTypeID": (ctypes.c_ulong, []),
    "CFNumberGetValue": (ctypes.c_ubyte, [Ref, ctypes.c_long, ctypes.c_void_p]),
    "CFRelease": (None, [Ref]),
}


class AppleProbe:
    """Probe of one GPU, because Metal shows only one to MLX. Raises `ProbeUnavailable` if the registry has no metrics."""

    name = "iokit"

    def __init__(
        self,
        gpus: Sequence[Gpu],
        registry: Registry | None = None,
        memory_total: Callable[[], int] = lambda: psutil.virtual_memory().total,
    ) -> None:
        self._keys = [gpu.key for gpu in gpus]
        self._registry = registry or Registry()
        self._memory_total = memory_total
        try:
            readable = bool(self.read())
        except OSError as problem:
            self.close()
            raise ProbeUnavailable(f"the device registry does not respond: {problem}") from problem
        if not readable:
            self.close()
            raise ProbeUnavailable(f"no {SERVICE} has {STATISTICS}, which is usual in a virtual machine")

    def read(self) -> dict[str, GpuReadings]:
        """Return the current metrics by `Gpu.key`; raise `OSError` if the registry does not respond."""
        found = [one for one in self._registry.numbers(SERVICE, STATISTICS, (UTILIZATION, IN_USE)) if one]
        if not found:
            return {}
        # If several services match, the busy one is the GPU; the others report 0.
        busiest = max(found, key=lambda one: one.get(UTILIZATION, -1))
        figures = GpuReadings(percent(busiest.get(UTILIZATION)), self._memory_total(), busiest.get(IN_USE))
        return dict.fromkeys(self._keys, figures)

    def close(self) -> None:
        """Release the registry's cached names."""
        self._registry.close()


class Registry:
    """The part of macOS's device registry that GPU metrics need. Raises `ProbeUnavailable` on other systems.

    The caller must release the result of a function with Create or Copy in its name; values of a dictionary belong to the dictionary.
    IOServiceGetMatchingServices releases the matching dictionary itself. Tests pass IOKit and CoreFoundation as `libraries`.
    """

    def __init__(self, libraries: tuple[Any, Any] | None = None) -> None:
        self._iokit, self._core = libraries or _load()
        self._names: dict[str, int] = {}

    def close(self) -> None:
        """Release the cached names; the registry can still be used."""
        while self._names:
            self._core.CFRelease(self._names.popitem()[1])

    def numbers(self, service: str, dictionary: str, names: Sequence[str]) -> list[dict[str, int]]:
        """Return, for every service of a class, the numbers of these names in its property `dictionary`; omit missing ones.

        Raises `OSError` if the registry does not respond.
        """
        matching = self._iokit.IOServiceMatching(service.encode())
        if not matching:
            raise OSError(f"IOServiceMatching does not know {service!r}")
        services = Object()
        status = self._iokit.IOServiceGetMatchingServices(MAIN_PORT, matching, ctypes.byref(services))
        if status != SUCCESS:
            raise OSError(f"IOServiceGetMatchingServices returned {status & 0xFFFFFFFF:#x} for {service!r}")
        found: list[dict[str, int]] = []
        try:
            while entry := self._iokit.IOIteratorNext(services.value):
                try:
                    found.append(self._numbers_of(entry, dictionary, names))
                finally:
                    self._iokit.IOObjectRelease(entry)
        finally:
            self._iokit.IOObjectRelease(services.value)
        return found

    def _numbers_of(self, entry: int, dictionary: str, names: Sequence[str]) -> dict[str, int]:
        core = self._core
        content = self._iokit.IORegistryEntryCreateCFProperty(entry, self._name(dictionary), None, 0)
        if not content:
            return {}
        try:
            if core.CFGetTypeID(content) != core.CFDictionaryGetTypeID():
                return {}
            values = ((name, core.CFDictionaryGetValue(content, self._name(name))) for name in names)
            numbers = ((name, self._number(value)) for name, value in values if value)
            return {name: number for name, number in numbers if number is not None}
        finally:
            core.CFRelease(content)

    def _number(self, value: int) -> int | None:
        core = self._core
        if core.CFGetTypeID(value) != core.CFNumberGetTypeID():
            return None
        number = ctypes.c_int64()
        # False means that the number was rounded or did not fit.
        return number.value if core.CFNumberGetValue(value, SIGNED_64, ctypes.byref(number)) else None

    def _name(self, text: str) -> int:
        """Return a cached CFString of `text`."""
        if text not in self._names:
            made = self._core.CFStringCreateWithCString(None, text.encode(), UTF_8)
            if not made:
                raise OSError(f"CoreFoundation could not create the string {text!r}")
            self._names[text] = made
        return self._names[text]


def _load() -> tuple[Any, Any]:
    if platform.system() != "Darwin":
        raise ProbeUnavailable("IOKit is available on macOS only")
    try:
        libraries = ctypes.CDLL(FRAMEWORK.format("IOKit")), ctypes.CDLL(FRAMEWORK.format("CoreFoundation"))
        for library, functions in zip(libraries, (IOKIT, CORE_FOUNDATION), strict=True):
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as problem:
        raise ProbeUnavailable(f"cannot load IOKit: {problem}") from problem
    return libraries
