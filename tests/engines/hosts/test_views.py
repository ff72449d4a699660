"""Hosts as users see them: records, health, figures of their devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from openruntime_jupyter.engines.hosts.finder import HostsSetup, HostUnusable
from openruntime_jupyter.engines.hosts.link import ByteStream
from openruntime_jupyter.engines.hosts.machine import HostMachine
from openruntime_jupyter.engines.hosts.messages import GpuState, State
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import DeviceReport
from openruntime_jupyter.runtime.metrics.gpu import GpuReadings
from openruntime_jupyter.runtime.metrics.sampler import Sample
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.runtime import hosts_in_use, hosts_problem, readings_of, view_device
from openruntime_jupyter.schemas.hosts import Host, HostState
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import busy, runtime_in, until

NOW = "2026-01-01T00:00:00.000000Z"


class Closed:
    """Way to a host without the package."""

    name, address = "closed", "ssh closed"

    async def connect(self) -> ByteStream:
        raise HostUnusable("it has no package openruntime-jupyter", "install it there")

    async def connect_for_arrays(self, folder: str) -> ByteStream:
        raise OSError("closed")


async def test_hosts_are_listed_with_devices_slots_and_problems(tmp_path: Path) -> None:
    finder = PipeFinder(PipeWay("far", tmp_path / "far"), Closed())
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(finder, local=False)) as runtime:
        await until(lambda: [host.state for host in runtime.hosts()] == ["refused", "connecting"], 60, "both hosts")
        assert not any("No device" in problem for problem in runtime.health().problems)
        await until(lambda: runtime.lanes.devices, 60, "the host")
        task_id = await busy(runtime)
        await until(lambda: any(host.cpu_utilization is not None for host in runtime.hosts()), 60, "a report of the host")
        closed, far = runtime.hosts()
        assert (far.name, far.state, far.devices, far.running, far.problem) == ("far", "ready", ["far.device_0"], 1, None)
        assert far.slots >= 1
        assert far.memory_total is not None
        assert far.round_trip_s is not None
        (device,) = runtime.devices()
        assert device.utilization == far.cpu_utilization
        assert (closed.state, closed.problem, closed.advice) == ("refused", "it has no package openruntime-jupyter", "install it there")
        health = runtime.health()
        assert health.status == "degraded"
        assert health.metrics.hosts == runtime.system_metrics().hosts == "1 on far, closed refused"
        assert any("closed (refused)" in problem for problem in health.problems)
        assert not any("far" in problem for problem in health.problems)
        await runtime.cancel(task_id)


def host(name: str, state: HostState) -> Host:
    return Host(name=name, state=state, address=name, since=NOW)


@pytest.mark.parametrize(("number", "named"), [(0, 0), (1, 1), (5, 5), (900, 5)])
def test_health_names_a_few_hosts_that_run_no_tasks(number: int, named: int) -> None:
    lost = [host(f"lost{each}", "lost") for each in range(number)]
    problem = hosts_problem([host("a", "ready"), host("b", "connecting"), *lost])
    assert (problem or "").count("(lost)") == named
    assert ("895 more" in (problem or "")) == (number == 900)


def test_status_bars_name_a_few_hosts() -> None:
    hosts = [host("a", "ready"), host("b", "connecting"), host("c", "silent"), host("d", "lost")]
    assert hosts_in_use([], {"": 2}) is None
    assert hosts_in_use(hosts[:2], {}) is None
    assert hosts_in_use(hosts, {"": 2, "c": 1, "a": 2}) == "2 on a, 1 on c, c silent, d lost"
    assert hosts_in_use([*hosts, host("e", "refused"), host("f", "lost")], {"a": 1}) == "1 on a, c silent, d lost, e refused, 1 more"


async def test_figures_of_a_gpu_are_those_of_its_host(tmp_path: Path) -> None:
    report = DeviceReport("gpu", 0, "GeForce", 24 << 30, ("cuda", "mlx"), "0.32")
    machine = HostMachine(64 << 30, 8)
    lane = Lane("gpu1.device_0", report, 1, 30.0, LocalEngine(LocalOptions(tmp_path, tmp_path)), machine)
    mine = Sample(gpus={"device_0": GpuReadings(utilization=99.0)}, cpu_utilization=88.0)
    assert readings_of(lane, mine) == GpuReadings()
    machine.update(State(64 << 30, 32 << 30, 12.0, gpus={"device_0": GpuState(50.0, 24 << 30, 20 << 30, 61.0, 300.0)}))
    admission = Admission(lane.engine, lambda lane: readings_of(lane, mine))  # type: ignore[arg-type]
    device = view_device(lane, admission, mine)
    assert (device.utilization, device.temperature_celsius, device.power_watts) == (50.0, 61.0, 300.0)
    assert device.memory_available == 4 << 30
    assert admission.free(lane) == 4 << 30
