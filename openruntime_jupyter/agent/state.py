"""State of this host, as its agent reports it to runtimes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence

from openruntime_jupyter.engines.hosts.messages import GpuState, RunState, State
from openruntime_jupyter.engines.protocol import DeviceReport, Engine
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.metrics.gpu import Gpu
from openruntime_jupyter.runtime.metrics.sampler import Meters, Sampler

SAMPLE_SECONDS = 1.0


class HostState:
    """Reader of this host's memory, load and GPUs, and of an engine's workers. `meters` get the readings of the GPUs."""

    def __init__(self, devices: Sequence[DeviceReport], meters: Meters) -> None:
        self.machine = Machine()
        self._sampler = Sampler(self.machine, SAMPLE_SECONDS, SAMPLE_SECONDS, lambda: None, meters)
        gpus = [(number, device) for number, device in enumerate(devices) if device.type == "gpu"]
        self._sampler.set_gpus([Gpu(f"device_{number}", device.index, device.name, device.capabilities) for number, device in gpus])
        self._sampler.start()

    def read(self, engine: Engine, runs: Mapping[int, str]) -> State:
        """Return the state; `runs` are the ids of the running tasks by the number of their run."""
        sample, memory = self._sampler.latest, self.machine.memory()
        return State(
            memory_total=memory.total,
            memory_available=memory.available,
            cpu=sample.cpu_utilization,
            gpus={
                key: GpuState(each.utilization, each.memory_total, each.memory_used, each.temperature, each.power)
                for key, each in sample.gpus.items()
            },
            gpu_problems=dict(sample.problems),
            workers=tuple(engine.workers()),
            models=tuple(engine.models.reports()),
            runs={number: RunState(engine.allocated(task_id), engine.resident(task_id)) for number, task_id in runs.items()},
        )

    def close(self) -> None:
        """Stop reading."""
        self._sampler.stop(0.0)


def platform_name() -> str:
    """Return the operating system and the processor's architecture, such as `macOS arm64`."""
    return f"{'macOS' if sys.platform == 'darwin' else platform.system()} {platform.machine()}"
