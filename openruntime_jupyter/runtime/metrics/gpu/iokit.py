"""The part of macOS's device registry that GPU metrics need, by ctypes. Creating a `Registry` loads the frameworks.

IOKit and CoreFoundation are public and need no privilege. The caller must release the result of a function with Create or Copy in its
name; values of a dictionary belong to the dictionary. IOServiceGetMatchingServices releases the matching dictionary itself.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable
from typing import Any

from openruntime_jupyter.runtime.metrics.gpu.base import ProbeUnavailable

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


class Registry:
    """Device registry. Raises `ProbeUnavailable` on other systems; tests pass IOKit and CoreFoundation as `libraries`."""

    def __init__(self, libraries: tuple[Any, Any] | None = None) -> None:
        self._iokit, self._core = libraries or _load()
        self._names: dict[str, int] = {}

    def close(self) -> None:
        """Release the cached names; the registry can still be used."""
        while self._names:
            self._core.CFRelease(self._names.popitem()[1])

    def numbers(self, service: str, dictionary: str, names: Iterable[str]) -> list[dict[str, int]]:
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
        wanted = tuple(names)
        found: list[dict[str, int]] = []
        try:
            while entry := self._iokit.IOIteratorNext(services.value):
                try:
                    found.append(self._numbers_of(entry, dictionary, wanted))
                finally:
                    self._iokit.IOObjectRelease(entry)
        finally:
            self._iokit.IOObjectRelease(services.value)
        return found

    def _numbers_of(self, entry: int, dictionary: str, names: tuple[str, ...]) -> dict[str, int]:
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
