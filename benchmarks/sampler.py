"""CPU use of an idle runtime with a metrics subscriber: sampler at 1 Hz, history on."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, within
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings

SECONDS = 20.0


async def _percent(folder: Path) -> float:
    runtime = Runtime(Settings(data_dir=folder))
    await runtime.start()
    subscription, _ = runtime.bus.subscribe(("metrics",))
    await asyncio.sleep(3.0)  # exclude the start
    cpu, wall = time.process_time(), time.perf_counter()
    ends = wall + SECONDS
    async for _ in subscription:
        if time.perf_counter() >= ends:
            subscription.close()
    percent = 100 * (time.process_time() - cpu) / (time.perf_counter() - wall)
    await runtime.stop()
    return percent


def rows() -> list[Row]:
    """Return the CPU use in percent of one core."""
    with tempfile.TemporaryDirectory() as folder:
        return [within("sampler at 1 Hz, watched, history on", asyncio.run(_percent(Path(folder))), 0.5, "% of one core")]
