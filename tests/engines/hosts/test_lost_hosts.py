"""Hosts that are lost, silent, late or unusable: what becomes of their tasks, and what users see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.engine import NullObserver, job
from openruntime_jupyter import __version__
from openruntime_jupyter.engines.hosts.connection import Connection, HostsOptions, connect
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.hosts.link import ByteStream, Link
from openruntime_jupyter.engines.protocol import Died, Job, Observer, Outcome
from openruntime_jupyter.errors import UnknownDevice
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.queue.lane import Lane
from openruntime_jupyter.runtime.queue.scheduler import Scheduler
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.tasks import TaskState
from tests.engines.hosts.scripted_agent import WELCOME, frame, scripted_way
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import busy, cell, completed, ended, failed, runtime_in, until, waits_for

SILENCE, LOST = 1.0, 1.5
"""Times in seconds, ten times shorter than usual."""

WRITES = """
import os, time
with open({file!r}, 'a', 1) as file:
    print('begin', time.time(), file=file)
    print('in', flush=True)
    while not os.path.exists({file!r} + '.end'):
        print('runs', time.time(), file=file)
        time.sleep(0.02)
"""


@asynccontextmanager
async def running_on(finder: PipeFinder, folder: Path, *, local: bool = False) -> AsyncIterator[Runtime]:
    """Start a runtime with these hosts and short times."""
    async with runtime_in(folder / "near", hosts=HostsSetup(finder, local, SILENCE, LOST)) as runtime:
        yield runtime


def host(runtime: Runtime, name: str = "far") -> Host:
    return next(host for host in runtime.hosts() if host.name == name)


async def ready(runtime: Runtime, name: str = "far", seconds: float = 30.0) -> None:
    await until(lambda: any((each.name, each.state) == (name, "ready") for each in runtime.hosts()), seconds, f"{name} is ready")


def written(file: Path) -> list[tuple[str, float]]:
    """Return what the task has written with its times."""
    return [(what, float(when)) for what, when in (line.split() for line in file.read_text().splitlines())]


async def test_task_of_killed_agent_fails_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        task_id = await busy(runtime)
        processes = psutil.Process(way.agent.pid).children(recursive=True)
        begun = time.monotonic()
        way.agent.kill()
        failure = await failed(runtime, task_id)
        assert time.monotonic() - begun < 0.5
        assert failure.kind == "worker_died"
        assert failure.message == "The host far was lost while it ran: the other side closed the connection"
        assert not psutil.wait_procs(processes, timeout=5)[1]
        await until(lambda: len(way.agents) == 2, 10, "a second agent")
        await ready(runtime)
        assert len(list((tmp_path / "far" / "agents").glob("agent_*/"))) == 1, "the folder of the killed agent is left"


KILLS = 7


async def test_loss_is_known_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    files = ArrayStore(Settings(data_dir=tmp_path), "rt", Machine())
    options = HostsOptions("rt", tmp_path, files, share_folders=False)
    delays = []
    for number in range(KILLS):  # the median, because another process may have the processor for a while
        way = scripted_way("far", tmp_path / "far", frame(WELCOME))
        connection = await connect(way, Link(await way.connect()), options, {}, lambda silent: None, lambda used: None)
        serving = asyncio.ensure_future(connection.serve())
        running = asyncio.ensure_future(connection.run(job(number), NullObserver()))
        await asyncio.sleep(0)
        killed = time.monotonic()
        way.agent.kill()
        outcome = await running
        delays.append(time.monotonic() - killed)
        assert isinstance(outcome, Died)
        assert outcome.host_loss is not None
        await serving
        await connection.disconnect()
    assert statistics.median(delays) < 0.1, delays


async def test_task_with_retries_runs_again_elsewhere_when_its_first_run_is_over(tmp_path: Path) -> None:
    way, file = PipeWay("far", tmp_path / "far"), tmp_path / "file"
    async with running_on(PipeFinder(way), tmp_path, local=True) as runtime:
        await ready(runtime)
        await until(lambda: len(runtime.lanes.devices) == 2, 30, "both lanes")
        blocker = await busy(runtime, device_preference="device_0")
        task_id = await busy(runtime, WRITES.format(file=str(file)), retries=1)
        assert (await runtime.tasks.get(task_id)).device_used == "far.device_0"
        killed = time.time()
        way.agent.kill()
        await runtime.cancel(blocker)
        await until(lambda: sum(what == "begin" for what, _ in written(file)) == 2, 20, "the second run")
        begins = [when for what, when in written(file) if what == "begin"]
        assert begins[1] - killed > SILENCE, "it ran again before the agent had certainly ended"
        Path(f"{file}.end").touch()
        task = await completed(runtime, task_id)
        assert (task.attempt, task.device_used) == (1, "device_0")
        output = "".join(item.text or "" for item in (await runtime.tasks.output(task_id)).items)
        assert "The host far was lost while it ran" in output
        assert "it runs again on another host" in output


class SlowlyClosedWay(PipeWay):
    """Way to an agent whose connection takes a second to close."""

    async def connect(self) -> ByteStream:
        stream = await super().connect()
        close = stream.close

        async def slowly() -> None:
            await asyncio.sleep(1.0)
            await close()

        stream.close = slowly  # type: ignore[method-assign]
        return stream


async def test_lanes_of_a_lost_host_close_before_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way, runs = SlowlyClosedWay("far", tmp_path / "far"), 0
    run = Connection.run

    async def counted(self: Connection, job: Job, observer: Observer) -> Outcome:
        nonlocal runs
        runs += 1
        return await run(self, job, observer)

    monkeypatch.setattr(Connection, "run", counted)
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        await busy(runtime)
        waiting = await cell(runtime, "1")
        way.agent.kill()
        await until(lambda: not runtime.lanes.devices, 0.9, "the end of the lane")
        await completed(runtime, waiting)
        assert runs < 10, "the waiting task was given to the lost host again and again"


async def test_suspended_agent_is_silent_then_lost_and_its_tasks_have_ended(tmp_path: Path) -> None:
    way, file = PipeWay("far", tmp_path / "far"), tmp_path / "file"
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        task_id = await busy(runtime, WRITES.format(file=str(file)))
        children = psutil.Process(way.agent.pid).children(recursive=True)
        way.agent.send_signal(signal.SIGSTOP)
        await until(lambda: host(runtime).state == "silent", 10, "the host is silent")
        assert host(runtime).problem == "it does not respond"
        failure = await failed(runtime, task_id)
        lost = time.time()
        assert failure.message.startswith("The host far was lost while it ran: ")
        assert not psutil.wait_procs(children, timeout=5)[1]
        # The guard kills the agent, whose connection ends a moment before its workers do.
        assert written(file)[-1][1] < lost + 0.5, "the task ran on after its host was lost"


async def test_cancel_on_silent_host_ends_when_the_host_is_lost(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        task_id = await busy(runtime)
        way.agent.send_signal(signal.SIGSTOP)
        cancelling = asyncio.ensure_future(runtime.cancel(task_id))
        await waits_for(runtime, task_id, "the host far, which does not respond")
        task = await cancelling
        assert task.status == "cancelled"
        assert "the host far was lost" in (task.error or "")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can cut a network namespace")
def test_nothing_runs_twice_when_the_network_is_cut(tmp_path: Path) -> None:
    command = ["unshare", "--net", sys.executable, "-m", "tests.engines.hosts.cut_network", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "unshare: " in done.stderr:
        pytest.skip(f"no network namespace can be made here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    begins = [number for number, (what, _) in enumerate(found["written"]) if what == "begin"]
    assert (len(begins), found["status"], found["device"]) == (2, "completed", "device_0")
    first, second = found["written"][: begins[1]], found["written"][begins[1] :]
    assert LOST - 0.2 < found["lost"] - found["cut"] < LOST + 2, "the last ping may have left just before the cut"
    assert first[-1][1] - found["cut"] > SILENCE / 2, "the first run did not outlive the network"
    assert first[-1][1] < found["lost"] <= second[0][1], "two runs at once"
    assert second[-1][0] == "end"


async def test_hosts_come_and_go(tmp_path: Path) -> None:
    finder = PipeFinder()
    async with running_on(finder, tmp_path, local=True) as runtime:
        await until(lambda: runtime.lanes.devices, 30, "this machine's lane")
        await busy(runtime)
        second = await cell(runtime, "1")
        await until(lambda: finder.demanded == 1, 5, "the finder knows that a task waits")
        finder.found(PipeWay("far", tmp_path / "far"))
        assert (await completed(runtime, second)).device_used == "far.device_0"
        running = await busy(runtime)
        assert finder.in_use == {"far": True}
        waiting = await cell(runtime, "1", device_preference="far")
        finder.gone("far", "it left the cluster")
        assert (await failed(runtime, running)).message == "The host far was lost while it ran: it left the cluster"
        assert runtime.hosts() == []
        await waits_for(runtime, waiting, "far, which is not available")
        assert finder.in_use == {"far": False}
        finder.found(PipeWay("far", tmp_path / "far"))
        assert (await completed(runtime, waiting)).device_used == "far.device_0"


async def test_host_with_new_address_is_connected_there(tmp_path: Path) -> None:
    way, other = PipeWay("far", tmp_path / "far"), PipeWay("far", tmp_path / "far")
    other.address = "pipe other"
    finder = PipeFinder(way)
    async with running_on(finder, tmp_path) as runtime:
        await ready(runtime)
        finder.found(other)
        await until(lambda: other.agents, 10, "the new address is used")
        await ready(runtime)
        assert host(runtime).address == "pipe other"
        assert (await completed(runtime, await cell(runtime, "1"))).device_used == "far.device_0"
        assert way.agent.returncode == 0


async def test_host_that_fails_to_start_is_tried_again(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far", variables={"PYTHONHOME": "/nowhere"})
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        first = await cell(runtime, "1")
        await waits_for(runtime, first, "a device, and none is available")
        named = [await cell(runtime, "1", device_preference=preference) for preference in ("far", "far.device_0")]
        await waits_for(runtime, named[1], "far.device_0, which is not available")
        await until(lambda: runtime.health().status == "degraded", 10, "its first agent has failed")
        way.variables.pop("PYTHONHOME")
        for each in (first, *named):
            assert (await completed(runtime, each)).device_used == "far.device_0"
        assert runtime.health().status == "healthy"
        with pytest.raises(UnknownDevice, match=r"unknown device 'far\.device_1'"):
            await cell(runtime, "1", device_preference="far.device_1")


OTHER_VERSION = """
import asyncio, runpy, sys
from openruntime_jupyter.agent import session
session.__version__ = '0.0.1'
sys.argv = ['agent', '-']
runpy.run_module('openruntime_jupyter.agent', run_name='__main__')
"""


async def test_other_version_is_refused_with_the_command_for_that_host(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far", arguments=("-c", OTHER_VERSION))
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        await until(lambda: host(runtime).state == "refused", 20, "the refusal")
        assert host(runtime).problem == f"It has openruntime-jupyter 0.0.1, and this runtime is version {__version__}"
        assert host(runtime).advice == f"{sys.executable} -m pip install openruntime-jupyter=={__version__}"
        assert runtime.health().status in ("degraded", "starting")


async def test_host_without_mlx_is_refused_with_the_command_for_that_host(tmp_path: Path) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('no MLX here')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())])
    way = PipeWay("far", tmp_path / "far", variables={"PYTHONPATH": path})
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        await until(lambda: host(runtime).state == "refused", 20, "the refusal")
        assert "no MLX here" in (host(runtime).problem or "")
        assert host(runtime).advice == f"{sys.executable} -m pip install 'openruntime-jupyter[cpu]'"


OTHER_BOOT = """
import runpy, sys
from openruntime_jupyter.agent import session
session.boot_id = lambda: 'another'
sys.argv = ['agent', '-']
runpy.run_module('openruntime_jupyter.agent', run_name='__main__')
"""


async def test_restart_of_a_host_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finder = PipeFinder(PipeWay("far", tmp_path / "far"))
    async with running_on(finder, tmp_path) as runtime:
        await ready(runtime)
        again = PipeWay("far", tmp_path / "far", arguments=("-c", OTHER_BOOT))
        again.address = "pipe again"
        finder.found(again)
        await until(lambda: "The host far was restarted: its sessions and loaded models are lost" in caplog.text, 10, "the log")


async def test_agent_that_sends_nonsense_is_lost(tmp_path: Path) -> None:
    babble = "import sys; sys.stdout.write('Welcome to this host!' * 100); sys.stdout.flush(); sys.stdin.read()"
    way = PipeWay("far", tmp_path / "far", arguments=("-c", babble))
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        await until(lambda: host(runtime).state == "lost", 20, "the loss")
        assert "the other side sent a frame of" in (host(runtime).problem or "")


async def test_runtime_stops_while_a_host_is_silent(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        task_id = await busy(runtime)
        way.agent.send_signal(signal.SIGSTOP)
        await runtime.stop(2.0)
        assert (await ended(runtime, task_id)).status is TaskState.INTERRUPTED
        await asyncio.wait_for(way.agent.wait(), 10)


async def test_fault_of_one_connection_does_not_end_the_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = PipeWay("far", tmp_path / "far")
    join, faults = Scheduler.join, iter([True])

    def fails_once(self: Scheduler, lane: Lane) -> None:
        if next(faults, False):
            raise RuntimeError("on purpose")
        join(self, lane)

    monkeypatch.setattr(Scheduler, "join", fails_once)
    async with running_on(PipeFinder(way), tmp_path) as runtime:
        await until(lambda: host(runtime).problem is not None, 20, "the fault")
        assert "RuntimeError('on purpose'): this is a fault in openruntime" in (host(runtime).problem or "")
        assert (await completed(runtime, await cell(runtime, "1"))).device_used == "far.device_0"
        assert way.agents[0].returncode == 0
