"""Fake of the IOKit and CoreFoundation functions that `apple.py` declares, with reference counts.

The numbers come from recorded driver statistics; see `RECORDED`.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from openruntime_jupyter.runtime.metrics.gpu import apple

# As `ioreg -r -d 1 -w 0 -c IOAccelerator` printed PerformanceStatistics on an M3 Pro and on an M1 Pro, published in the tests of
# open-source monitors.
RECORDED = {
    "M3 Pro": {
        "In use system memory (driver)": 0,
        "Alloc system memory": 16749051904,
        "Renderer Utilization %": 11,
        "Device Utilization %": 16,
        "In use system memory": 568164352,
    },
    "M1 Pro": {
        "In use system memory (driver)": 0,
        "Alloc system memory": 14511046656,
        "Renderer Utilization %": 34,
        "Device Utilization %": 34,
        "In use system memory": 7688503296,
    },
}

DICTIONARY, NUMBER, STRING = 1, 2, 3
TOO_LARGE = 1 << 70
"""A number that does not fit into 64 bits."""


class Mac:
    """Device registry with these accelerators, given by their properties. `owned` and `ports` are not released yet."""

    def __init__(self, *accelerators: dict[str, Any], status: int = 0, known: bool = True, strings: bool = True) -> None:
        self.accelerators = accelerators
        self.status = status
        self.known = known
        self.strings = strings
        self.values: dict[int, Any] = {}
        self.owned: Counter[int] = Counter()
        self.ports: Counter[int] = Counter()
        self.queue: list[int] = []
        names = {*apple.IOKIT, *apple.CORE_FOUNDATION}
        # Only declared functions can be called: pointers of undeclared ones would be truncated on a real Mac.
        functions = {name: getattr(self, name) for name in names}
        self.libraries = SimpleNamespace(**functions), SimpleNamespace(**functions)

    def _ref(self, value: Any, owned: bool) -> int:
        ref = 0x7F00_0000_0000 + len(self.values)
        self.values[ref] = value
        self.owned[ref] += owned
        return ref

    # IOKit

    def IOServiceMatching(self, name: bytes) -> int:
        assert name == b"IOAccelerator"
        return self._ref({}, owned=True) if self.known else 0

    def IOServiceGetMatchingServices(self, port: int, matching: int, services: Any) -> int:
        self.CFRelease(matching)  # by contract, whatever the outcome
        if self.status:
            return self.status
        self.queue = [200 + index for index in range(len(self.accelerators))]
        services._obj.value = 100
        self.ports[100] += 1
        return 0

    def IOIteratorNext(self, services: int) -> int:
        assert self.ports[services] == 1
        if not self.queue:
            return 0
        entry = self.queue.pop(0)
        self.ports[entry] += 1
        return entry

    def IOObjectRelease(self, port: int) -> int:
        assert self.ports[port] > 0, "released too often"
        self.ports[port] -= 1
        return 0

    def IORegistryEntryCreateCFProperty(self, entry: int, name: int, allocator: None, options: int) -> int:
        assert self.ports[entry] == 1
        content = self.accelerators[entry - 200].get(self.values[name])
        return 0 if content is None else self._ref(content, owned=True)

    # CoreFoundation

    def CFStringCreateWithCString(self, allocator: None, text: bytes, encoding: int) -> int:
        assert encoding == 0x08000100
        return self._ref(text.decode(), owned=True) if self.strings else 0

    def CFGetTypeID(self, ref: int) -> int:
        value = self.values[ref]
        return DICTIONARY if isinstance(value, dict) else NUMBER if isinstance(value, int) else STRING

    def CFDictionaryGetTypeID(self) -> int:
        return DICTIONARY

    def CFNumberGetTypeID(self) -> int:
        return NUMBER

    def CFDictionaryGetValue(self, ref: int, name: int) -> int:
        assert self.owned[ref] == 1
        value = self.values[ref].get(self.values[name])
        return 0 if value is None else self._ref(value, owned=False)

    def CFNumberGetValue(self, ref: int, kind: int, number: Any) -> int:
        assert kind == 4
        if self.values[ref] == TOO_LARGE:
            return 0
        number._obj.value = self.values[ref]
        return 1

    def CFRelease(self, ref: int) -> None:
        assert self.owned[ref] > 0, "released without ownership"
        self.owned[ref] -= 1

    @property
    def leaked(self) -> list[int]:
        """Return the references that are not released."""
        return [*(+self.owned).elements(), *(+self.ports).elements()]
