"""GPU metrics from the probe to the API. A CPU lane replaces the GPU; the worker is real."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import DeviceReport, Job, Observer, Outcome
from openruntime_jupyter.memory import Machine, Memory
from openruntime_jupyter.runtime.metrics import sampler as sampler_module
from openruntime_jupyter.runtime.metrics.gpu import Gpu, GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import Sample, Sampler
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.runtime import Runtime, view_device
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Task
from tests.runtime.probes.fake_nvml import GIB, Fails, FakeGpu, FakeNvml
from tests.runtimes import cell, completed, ended, pickled, submit, until, waits_for
from tests.support import wait_until
from tests.work import spin

NAME = "NVIDIA GeForce RTX 4090"
LONG = 1.0
"""Seconds of a task that is long enough to be measured."""


class WithGpus(LocalEngine):
    """Local engine that reports GPUs, while its workers compute on the CPU."""

    gpus = 1

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        found = await super().devices(interpreter)
        gpu = replace(found[0], type="gpu", name=NAME, memory=24 * GIB, capabilities=("cuda", "mlx"), blas=None, advice=None)
        return [*(replace(gpu, index=index) for index in range(self.gpus)), *found]

    async def run(self, job: Job, observer: Observer) -> Outcome:
        return await super().run(replace(job, device_type="cpu", device_index=0), observer)


@asynccontextmanager
async def runtime_with_gpus(folder: Path, gpus: int = 1, **settings: Any) -> AsyncIterator[Runtime]:
    known = Settings(data_dir=folder, cpu_slots=1, idle_sample_interval=600.0, **settings)
    engine = WithGpus(LocalOptions(payloads=known.payloads, temporary=known.temporary))
    engine.gpus = gpus
    runtime = Runtime(known, engine)
    await runtime.start()
    try:
        await until(lambda: len(runtime.devices()) == gpus + 1, 30, "the devices")
        yield runtime
    finally:
        await runtime.stop()


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.setattr(sampler_module, "SETTLE_SECONDS", 0.5)
    module = FakeNvml(FakeGpu(), FakeGpu(uuid="GPU-2", utilization=13))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return module


def spinning(seconds: float) -> dict[str, Any]:
    """Return the parameters of a call that computes for so long, in a process that other calls share."""
    return {**pickled(spin, seconds), "burst": "one"}


def busy_percent(task: Task) -> float | None:
    assert task.status == "completed", task.failure
    return task.performance_metrics.gpu_utilization


async def test_devices_and_metrics_show_driver_values(tmp_path: Path, nvml: FakeNvml) -> None:
    async with runtime_with_gpus(tmp_path, gpus=2) as runtime:
        await until(lambda: runtime.metrics_service._sampler.latest.gpus, 10, "the first figures")
        first, second, cpu = runtime.devices()
        assert (first.utilization, first.temperature_celsius, first.power_watts) == (87.0, 61.0, 312.45)
        assert (first.memory_total, first.memory_available) == (24 * GIB, 18 * GIB)
        assert second.utilization == 13.0
        assert cpu.utilization == runtime.metrics().cpu_utilization
        assert runtime.metrics().gpu_utilization == 50.0, "the mean of both"
        body = cpu.model_dump()
        assert "temperature_celsius" not in body
        assert "power_watts" not in body
    assert nvml.opened == 0, "NVML was shut down when the runtime stopped"


async def test_task_alone_on_gpu_gets_its_utilization(tmp_path: Path, nvml: FakeNvml) -> None:
    async with runtime_with_gpus(tmp_path, sample_interval=0.1) as runtime:
        long = await ended(runtime, await submit(runtime, "call", spinning(LONG)))
        assert busy_percent(long) == 87.0
        assert LONG <= (long.performance_metrics.device_time_s or 0) < 10
        short = await ended(runtime, await submit(runtime, "call", spinning(0.05)))
        assert busy_percent(short) is None, "no sample covers its run alone"
        beside = await ended(runtime, await submit(runtime, "call", spinning(LONG), device_preference="cpu"))
        assert busy_percent(beside) is None, "it ran on the CPU"
        assert not runtime.metrics_service._sampler._due(), "metrics are not watched and the GPU is idle"


async def test_device_time_counts_every_attempt(tmp_path: Path, nvml: FakeNvml) -> None:
    code = "import os, pathlib, time\ntime.sleep(0.4)\nfirst = pathlib.Path('first')\nif not first.exists():\n first.touch()\n os._exit(9)"

    async with runtime_with_gpus(tmp_path) as runtime:
        task = await ended(runtime, await cell(runtime, f"import os; os.chdir({str(tmp_path)!r})\n{code}", retries=1))
        assert (task.status, task.attempt) == ("completed", 2)
        figures = task.performance_metrics
        assert (figures.device_time_s or 0) >= 0.8
        assert (figures.execution_time_ms or 0) / 1000 <= (figures.device_time_s or 0) - 0.4


async def test_unreadable_gpu_is_null_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(init=Fails("NVML_ERROR_LIB_RM_VERSION_MISMATCH")))

    async with runtime_with_gpus(tmp_path) as runtime:
        await until(lambda: runtime.metrics_service._sampler.latest.problems, 10, "the probes to be tried")
        gpu = runtime.devices()[0]
        assert runtime.metrics().gpu_utilization is None
        assert "restart the machine" in (gpu.advice or "")
        assert (gpu.memory_total, gpu.memory_available) == (24 * GIB, 24 * GIB)
        assert not {"utilization", "temperature_celsius", "power_watts"} & set(gpu.model_dump())


def test_lost_gpu_becomes_null_and_others_stay(nvml: FakeNvml) -> None:
    gpus = [Gpu(f"device_{index}", index, NAME, ("cuda",)) for index in range(2)]
    sampler = Sampler(Machine(), 0.02, 600.0, lambda: None)
    sampler.start()
    try:
        assert sampler.latest.gpus == {}, "a slow driver must not delay the start"
        sampler.set_gpus(gpus)
        sampler.watch(True)
        wait_until(lambda: sampler.latest.gpus.get("device_0"), what="the first figures")
        assert sampler.latest.gpus["device_0"].utilization == 87.0
        nvml.gpus[0].lose()
        wait_until(lambda: sampler.latest.gpus["device_0"].utilization is None, what="the loss")
        assert sampler.latest.gpus["device_1"].utilization == 13.0
        assert sampler.latest.memory_usage is not None
    finally:
        sampler.stop(5.0)
    assert nvml.opened == 0


def test_metrics_become_null_while_driver_hangs(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "STALE_SECONDS", 0.1)
    hangs, real = threading.Event(), FakeNvml.nvmlDeviceGetMemoryInfo
    answers = threading.Event()

    def may_hang(self: FakeNvml, handle: Any) -> Any:
        if hangs.is_set():
            answers.wait()
        return real(self, handle)

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetMemoryInfo", may_hang)
    sampler = Sampler(Machine(), 0.02, 0.02, lambda: None)
    sampler.start()
    try:
        sampler.set_gpus([Gpu("device_0", 0, NAME, ("cuda",))])
        wait_until(lambda: sampler.latest.gpus, what="the first figures")
        hangs.set()
        wait_until(lambda: sampler.latest.memory_usage is None and not sampler.latest.gpus, what="the end of what was known")
        hangs.clear()
        answers.set()
        wait_until(lambda: sampler.latest.memory_usage is not None and sampler.latest.gpus, what="new figures")
    finally:
        answers.set()
        sampler.stop(5.0)


def test_vendor_library_is_called_on_one_thread(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    for name in ("nvmlInit", "nvmlDeviceGetUtilizationRates", "nvmlShutdown"):
        real = getattr(FakeNvml, name)
        monkeypatch.setattr(FakeNvml, name, lambda self, *rest, real=real: (threads.add(threading.get_ident()), real(self, *rest))[1])
    sampler = Sampler(Machine(), 0.02, 600.0, lambda: None)
    sampler.start()
    sampler.set_gpus([Gpu("device_0", 0, NAME, ("cuda",))])
    wait_until(lambda: sampler.latest.gpus, what="the first figures")
    sampler.stop(5.0)
    assert nvml.opened == 0
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_available_memory_of_unified_gpu_is_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "memory", lambda self: Memory(36 * GIB, 7 * GIB))
    report = DeviceReport("gpu", 0, "Apple M3 Pro", 24 * GIB, ("metal", "mlx", "unified_memory"), "0.32")
    engine = LocalEngine(LocalOptions(tmp_path, tmp_path))
    lane = Lane("device_0", report, 1, 30.0, engine, Machine(list))
    admission = Admission(engine)
    sample = Sample(gpus={"device_0": GpuReadings(utilization=16.0, memory_total=36 * GIB, memory_used=GIB)})
    device = view_device(lane, admission, sample)
    assert (device.memory_total, device.memory_available) == (24 * GIB, 7 * GIB)
    assert device.utilization == 16.0


async def test_task_waits_for_gpu_memory_of_other_programs(tmp_path: Path, nvml: FakeNvml) -> None:
    nvml.gpus[0].used = 20 * GIB

    async with runtime_with_gpus(tmp_path) as runtime:
        await until(lambda: runtime.metrics_service._sampler.latest.gpus, 10, "the first figures")
        size = int((10 * GIB / 4 / 3) ** 0.5)  # three float32 matrices
        waiting = await submit(runtime, "matrix_multiply", {"size": size, "iterations": 1}, wait=False)
        await waits_for(runtime, waiting, "4.29 GB are free")
        await runtime.cancel(waiting)
        nvml.gpus[0].used = 6 * GIB
        await completed(runtime, await submit(runtime, "matrix_multiply", {"size": 64, "iterations": 1}))


async def test_worker_reports_include_their_tasks(tmp_path: Path, nvml: FakeNvml) -> None:
    async with runtime_with_gpus(tmp_path, sample_interval=0.1) as runtime:
        await ended(runtime, await submit(runtime, "call", spinning(LONG)))
        await ended(runtime, await submit(runtime, "call", spinning(0.05)))
        (worker,) = [worker for worker in runtime.worker_stats.report() if worker.tasks]
        assert (worker.device, worker.state, worker.task_id, worker.tasks) == ("device_0", "idle", None, 2)
        assert LONG <= worker.device_time_s < 10
        assert worker.gpu_utilization == 87.0, "of the metered task"
        assert worker.resident_bytes
        assert worker.resident_peak_bytes
        assert worker.resident_peak_bytes >= worker.resident_bytes
        assert worker.mlx_peak_bytes is not None
        assert worker.interpreter == sys.executable
