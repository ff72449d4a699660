"""GPU metrics by the vendors' documented interfaces: the protocol of a probe, and the metrics that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ProbeUnavailable(Exception):
    """Error if a vendor's interface cannot be used; the message gives the reason and, if possible, the fix."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of MLX: `key` is its device's id, `index` its position among MLX's GPUs; `name` and `capabilities` come from MLX."""

    key: str
    index: int
    name: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """Metrics of one GPU; each is None if it cannot be read, independently of the others."""

    utilization: float | None = None
    """Percent of the driver's last window (up to a second) in which the GPU computed."""
    memory_total: int | None = None
    """Bytes; the machine's memory if the GPU shares it."""
    memory_used: int | None = None
    """Bytes used by all programs."""
    temperature: float | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""


NOTHING = GpuReadings()
"""Metrics of a GPU that cannot be read."""


class Probe(Protocol):
    """Open interface of one vendor. It is created, read and closed on the sampler's thread."""

    name: str

    def read(self) -> dict[str, GpuReadings]:
        """Return the current metrics by `Gpu.key`; a metric that cannot be read is None and raises no error."""

    def close(self) -> None:
        """Release the resources of the vendor's library."""


def percent(value: float | None) -> float | None:
    """Return a percentage unchanged, or None for a value outside 0 to 100."""
    return float(value) if value is not None and 0 <= value <= 100 else None
