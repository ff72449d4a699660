"""Apple's GPUs by what their driver tells the device registry, without privileges and without starting a program for each sample.

The driver of every Apple GPU is an IOAccelerator, and keeps a dictionary PerformanceStatistics. Its keys are Apple's own affair and
are not documented: each is taken as absent where it is absent. Temperature and power are not among them. Tools that show these
without sudo (macmon, and on PyPI `macmon-lib`, `actop`, `apple-smi`) read the private IOReport framework and the SMC, whose contents
differ from chip to chip and from release to release; so those two figures are absent on Apple's GPUs rather than sometimes wrong.
For the other two no package is worth a dependency: `apple-gpu` needs all of PyObjC for this one dictionary, `macmon-python` starts
a program, `macmon-lib` brings a binary, `actop` and `apple-smi` are terminal programs first.
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
"""Bytes that GPU work of all programs has in use; `Alloc system memory`, what they have reserved, says less."""


class AppleProbe:
    """One GPU, which is all that Metal shows to MLX. `memory_total` gives the machine's memory in bytes.

    Raises `ProbeUnavailable` where the registry has no figures.
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
            raise ProbeUnavailable(f"the device registry does not answer: {problem}") from problem
        if not readable:
            self.close()
            raise ProbeUnavailable(f"no {SERVICE} tells its {STATISTICS}, as is usual in a virtual machine")

    def read(self) -> dict[str, GpuFigures]:
        """The figures of now; raises `OSError` where the registry does not answer."""
        found = [one for one in self._registry.numbers(SERVICE, STATISTICS, (UTILIZATION, IN_USE)) if one]
        if not found:
            return {}
        # Where several services match, the one that works is the GPU; the others stand at 0.
        busiest = max(found, key=lambda one: one.get(UTILIZATION, -1))
        figures = GpuFigures(
            utilization=percent(busiest.get(UTILIZATION)),
            memory_total=self._memory_total(),
            memory_used=busiest.get(IN_USE),
        )
        return dict.fromkeys(self._keys, figures)

    def close(self) -> None:
        """Release what the registry kept."""
        self._registry.close()
