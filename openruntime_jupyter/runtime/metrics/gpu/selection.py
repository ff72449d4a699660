"""Selection of the probes for a machine's GPUs, and their combined metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from openruntime_jupyter.runtime.metrics.gpu.apple import AppleProbe
from openruntime_jupyter.runtime.metrics.gpu.base import Gpu, GpuFigures, Probe, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.nvidia import NvidiaProbe

log = logging.getLogger(__name__)

ProbeFactory = Callable[[Sequence[Gpu]], Probe]

KINDS: Mapping[str, ProbeFactory] = {"metal": AppleProbe, "cuda": NvidiaProbe}
"""Probe by the capability that MLX reports for a GPU."""


class Probes:
    """Probes of a machine's GPUs. They are opened, read and closed on one thread; no method raises."""

    def __init__(self, gpus: Sequence[Gpu] = (), kinds: Mapping[str, ProbeFactory] = KINDS) -> None:
        self._probes: list[Probe] = []
        self._silent: set[str] = set()
        self.problems: dict[str, str] = {}
        """Message for users why a GPU has no probe, by `Gpu.key`."""
        for capability, kind in kinds.items():
            served = [gpu for gpu in gpus if capability in gpu.capabilities]
            if served:
                self._open(kind, served)

    def read(self) -> dict[str, GpuFigures]:
        """Return the current metrics by `Gpu.key`, without GPUs that cannot be read."""
        found: dict[str, GpuFigures] = {}
        for probe in self._probes:
            try:
                found |= probe.read()
            except Exception as problem:  # a failing probe must not affect the others
                if probe.name not in self._silent:
                    self._silent.add(probe.name)
                    log.warning("The probe %s cannot read GPU metrics: %s", probe.name, problem)
        return found

    def close(self) -> None:
        """Close every probe."""
        while self._probes:
            probe = self._probes.pop()
            try:
                probe.close()
            except Exception as problem:  # nothing else to do
                log.debug("The probe %s did not close: %s", probe.name, problem)

    def _open(self, kind: ProbeFactory, gpus: Sequence[Gpu]) -> None:
        try:
            self._probes.append(kind(gpus))
        except ProbeUnavailable as problem:
            self._leave_out(gpus, str(problem))
        except Exception as problem:  # a vendor's library may raise anything; tasks run without its metrics
            self._leave_out(gpus, f"{type(problem).__name__}: {problem}")

    def _leave_out(self, gpus: Sequence[Gpu], reason: str) -> None:
        log.warning("Cannot read metrics of %s: %s", ", ".join(gpu.name for gpu in gpus), reason)
        self.problems |= {gpu.key: f"Cannot read its utilisation and memory: {reason}" for gpu in gpus}
