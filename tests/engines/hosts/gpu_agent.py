"""Agent of a host with two GPUs. Its workers compute on the CPU. NVML is a fake at its edge, and the second GPU can't be read."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from openruntime_jupyter.agent import session
from openruntime_jupyter.agent.__main__ import main
from openruntime_jupyter.engines.local import LocalEngine
from openruntime_jupyter.engines.protocol import DeviceReport, Job, Observer, Outcome
from tests.runtime.probes.fake_nvml import GIB, FakeGpu, FakeNvml


class WithGpus(LocalEngine):
    """Local engine that reports GPUs."""

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        found = await super().devices(interpreter)
        gpu = replace(found[0], type="gpu", name="NVIDIA GeForce RTX 4090", memory=24 * GIB, blas=None, advice=None)
        return [replace(gpu, capabilities=("cuda", "mlx")), replace(gpu, index=1, capabilities=("metal", "mlx")), *found]

    async def run(self, job: Job, observer: Observer) -> Outcome:
        return await super().run(replace(job, device_type="cpu", device_index=0), observer)


if __name__ == "__main__":
    sys.modules["pynvml"] = FakeNvml(FakeGpu())
    vars(session)["LocalEngine"] = WithGpus
    asyncio.run(main())
