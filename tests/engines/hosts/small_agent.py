"""Agent of a host with 1 GB of memory, of which each loaded model takes 0.4 GB."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from openruntime_jupyter.agent.__main__ import main
from openruntime_jupyter.engines import local
from openruntime_jupyter.engines.model_pool import ModelPool
from openruntime_jupyter.memory import Machine, Memory

MB = 1_000_000


class CountedPool(ModelPool):
    """Pool that memory depends on."""

    def __init__(self, most: int, grace: float, resident_bytes: Callable[[int], int | None]) -> None:
        super().__init__(most, grace, resident_bytes)
        pools.append(self)


pools: list[CountedPool] = []


def memory(machine: Machine) -> Memory:
    """Return the memory of the small machine."""
    machine.total = 1000 * MB
    return Memory(machine.total, max(0, 900 * MB - sum(400 * MB * len(pool.workers()) for pool in pools)))


if __name__ == "__main__":
    vars(local)["ModelPool"] = CountedPool
    setattr(Machine, "memory", memory)  # noqa: B010 - mypy knows that a method is replaced
    asyncio.run(main())
