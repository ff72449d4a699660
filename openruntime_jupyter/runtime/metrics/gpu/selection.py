"""Which probes this machine has, and what they read together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from openruntime_jupyter.runtime.metrics.gpu.apple import AppleProbe
from openruntime_jupyter.runtime.metrics.gpu.base import Gpu, GpuFigures, Probe, ProbeUnavailable
from openruntime_jupyter.runtime.metrics.gpu.nvidia import NvidiaProbe

log = logging.getLogger(__name__)

Kind = Callable[[Sequence[Gpu]], Probe]

KINDS: Mapping[str, Kind] = {"metal": AppleProbe, "cuda": NvidiaProbe}
"""What reads the GPUs that MLX says have this capability."""


class Probes:
    """The probes of this machine's GPUs. Opened, read and closed on one thread; never raises."""

    def __init__(self, gpus: Sequence[Gpu] = (), kinds: Mapping[str, Kind] = KINDS) -> None:
        self._probes: list[Probe] = []
        self._silent: set[str] = set()
        self.problems: dict[str, str] = {}
        """Why a GPU has no probe, by `Gpu.key`, in a sentence for people."""
        for capability, kind in kinds.items():
            served = [gpu for gpu in gpus if capability in gpu.capabilities]
            if served:
                self._open(kind, served)

    def read(self) -> dict[str, GpuFigures]:
        """The figures of now by `Gpu.key`; a GPU that nobody can read is not in it."""
        found: dict[str, GpuFigures] = {}
        for probe in self._probes:
            try:
                found |= probe.read()
            except Exception as problem:  # a probe that fails as a whole must not take the other figures along
                if probe.name not in self._silent:
                    self._silent.add(probe.name)
                    log.warning("The GPU's figures can't be read by %s: %s", probe.name, problem)
        return found

    def close(self) -> None:
        """Close every probe."""
        while self._probes:
            probe = self._probes.pop()
            try:
                probe.close()
            except Exception as problem:  # nothing is left to do about it
                log.debug("The probe %s did not close: %s", probe.name, problem)

    def _open(self, kind: Kind, gpus: Sequence[Gpu]) -> None:
        try:
            self._probes.append(kind(gpus))
        except ProbeUnavailable as problem:
            self._leave_out(gpus, str(problem))
        except Exception as problem:  # a vendor's library may raise anything, and work goes on without its figures
            self._leave_out(gpus, f"{type(problem).__name__}: {problem}")

    def _leave_out(self, gpus: Sequence[Gpu], reason: str) -> None:
        log.warning("The figures of %s can't be read: %s", ", ".join(gpu.name for gpu in gpus), reason)
        self.problems |= {gpu.key: f"Its utilisation and memory can't be read: {reason}" for gpu in gpus}
