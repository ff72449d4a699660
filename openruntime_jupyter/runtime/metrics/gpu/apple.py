"""Probe of Apple GPUs by the device registry, without privileges and without starting a program for each sample.

The driver of every Apple GPU is an IOAccelerator with a dictionary PerformanceStatistics. Its keys are undocumented, so each of them
may be missing. Temperature and power are not among them. Tools that show these without sudo (macmon, and on PyPI `macmon-lib`, `actop`,
`apple-smi`) read the private IOReport framework and the SMC, whose contents differ between chips and releases; the two metrics are
therefore omitted for Apple GPUs rather than sometimes wrong. For the other two no package is worth a dependency: `apple-gpu` needs all
of PyObjC for this one dictionary, `macmon-python` starts a program, `macmon-lib` includes a binary, and `actop` and `apple-smi` are
terminal programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from openruntime_jupyter.runtime.metrics.gpu.base import Gpu, GpuFigures, ProbeUnavailable, percent
from openruntime_jupyter.runtime.metrics.gpu.iokit import Registry

SERVICE = "IOAccelerator"
STATISTICS = "PerformanceStatistics"
UTILIZATION = "Device Utilization %"
IN_USE = "In use system memory"
"""Bytes in use by GPU work of all programs; `Alloc system memory`, their reserved bytes, is less informative."""


class AppleProbe:
    """Probe of one GPU, because Metal shows only one to MLX. `memory_total()` returns the machine's memory in bytes.

    Raises `ProbeUnavailable` if the registry has no metrics.
    """

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

    def read(self) -> dict[str, GpuFigures]:
        """Return the current metrics by `Gpu.key`; raise `OSError` if the registry does not respond."""
        found = [one for one in self._registry.numbers(SERVICE, STATISTICS, (UTILIZATION, IN_USE)) if one]
        if not found:
            return {}
        # If several services match, the busy one is the GPU; the others report 0.
        busiest = max(found, key=lambda one: one.get(UTILIZATION, -1))
        figures = GpuFigures(
            utilization=percent(busiest.get(UTILIZATION)),
            memory_total=self._memory_total(),
            memory_used=busiest.get(IN_USE),
        )
        return dict.fromkeys(self._keys, figures)

    def close(self) -> None:
        """Release the registry's cached names."""
        self._registry.close()
