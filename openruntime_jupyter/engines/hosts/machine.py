"""Machine of a host, as its agent reported it last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openruntime_jupyter.memory import Memory

if TYPE_CHECKING:
    from openruntime_jupyter.engines.hosts.messages import GpuState, State


class HostMachine:
    """Memory, cores and load of a host, as its agent reported them last."""

    def __init__(self, total: int, cores: int) -> None:
        self.total = total
        self.cores = cores
        self._available = total
        self._cpu: float | None = None
        self._gpus: dict[str, GpuState] = {}
        self._problems: dict[str, str] = {}

    def memory(self) -> Memory:
        """Return the total and available memory."""
        return Memory(self.total, self._available)

    def cpu_percent(self) -> float | None:
        """Return the load of all cores in percent; None if unknown."""
        return self._cpu

    def gpu(self, device: str) -> GpuState | None:
        """Return the readings of a GPU by the id that it has on the host; None if it has reported none."""
        return self._gpus.get(device)

    def gpu_problem(self, device: str) -> str | None:
        """Return why a GPU can't be read, by the id that it has on the host; None if it can or no reason is known."""
        return self._problems.get(device)

    def update(self, state: State) -> None:
        """Take over a report."""
        self.total, self._available, self._cpu = state.memory_total, state.memory_available, state.cpu
        self._gpus, self._problems = state.gpus, state.gpu_problems
