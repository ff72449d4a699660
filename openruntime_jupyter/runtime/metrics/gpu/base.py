"""What a probe is, and what it reads of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ProbeUnavailable(Exception):
    """A vendor's interface can't be used here; the message says why and, where there is something, what to do."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as MLX counts them: `key` is its device's id, `index` its place among MLX's GPUs, `name` and `capabilities` MLX's own."""

    key: str
    index: int
    name: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """The figures of one GPU. Each is None where it can't be read, whatever became of the others."""

    utilization: float | None = None
    """Percent of the driver's last window (up to a second) in which the GPU computed."""
    memory_total: int | None = None
    """Bytes; the machine's where the GPU shares its memory."""
    memory_used: int | None = None
    """Bytes, by all programs together."""
    temperature: float | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""


NOTHING = GpuFigures()
"""Nothing could be read."""


class Probe(Protocol):
    """One vendor's interface, open. Made, read and closed on one thread, the sampler's."""

    name: str

    def read(self) -> dict[str, GpuFigures]:
        """The figures of now by `Gpu.key`; a figure that can't be read is None, and nothing is raised for it."""

    def close(self) -> None:
        """Give back what the vendor's library holds."""


def percent(value: float | None) -> float | None:
    """A percentage as it is; None for what can't be one."""
    return float(value) if value is not None and 0 <= value <= 100 else None
