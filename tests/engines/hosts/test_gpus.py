"""GPUs of a host, from its driver to the API, Prometheus and the records of tasks."""

from __future__ import annotations

from pathlib import Path

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.server.handlers.prometheus import exposition
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtime.probes.fake_nvml import GIB
from tests.runtimes import completed, pickled, runtime_in, submit, until
from tests.work import spin

AGENT = ("-m", "tests.engines.hosts.gpu_agent")


async def test_readings_of_a_gpu_reach_metrics_and_tasks(tmp_path: Path) -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": ""}
    way = PipeWay("far", tmp_path / "far", variables, AGENT)
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way)), idle_sample_interval=0.5) as runtime:
        await until(lambda: any(device.temperature_celsius for device in runtime.devices()), 60, "the readings")
        await until(lambda: len(runtime.devices()) == 4, 60, "this machine")
        known, unread, *cpus = sorted(runtime.devices(), key=lambda device: (device.type == "cpu", device.id))
        assert (known.id, known.utilization, known.temperature_celsius, known.power_watts) == ("far.device_0", 87.0, 61.0, 312.45)
        assert (known.memory_total, known.memory_available) == (24 * GIB, 18 * GIB)
        assert (unread.id, unread.utilization, unread.temperature_celsius, unread.power_watts) == ("far.device_1", None, None, None)
        assert (unread.advice or "").startswith("Cannot read its utilization and memory")
        assert [device.advice == unread.advice for device in cpus] == [False, False]
        assert runtime.metrics().gpu_utilization == 87.0, "the mean of the readable ones"
        text = exposition(runtime, "text/plain")[0].decode()
        assert 'openruntime_device_utilization_ratio{device="far.device_0"} 0.87' in text
        assert 'openruntime_device_power_watts{device="far.device_1"}' not in text

        work = {**pickled(spin, 2.5), "burst": "one"}
        tasks = [
            await submit(runtime, "call", work, device_preference=device, wait=False) for device in ("far.device_0", "far.device_1", "cpu")
        ]
        measured = [(await completed(runtime, each)).performance_metrics.gpu_utilization for each in tasks]
        assert measured == [87.0, None, None]
        figures = {worker.device: worker.gpu_utilization for worker in runtime.worker_stats.report()}
        assert figures["far.device_0"] == 87.0

        async def recorded() -> bool:
            series = (await runtime.metrics_service.history("5m")).series
            return "gpu_memory" in series and max(value or 0 for value in series["gpu_memory"].max) == 6 * GIB

        await until(recorded, 30, "the memory of the host's GPU in the history")
