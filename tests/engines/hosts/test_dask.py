"""Workers of real Dask clusters as hosts of a runtime."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask import config
from distributed import Client

from openruntime_jupyter.engines.hosts import dask
from openruntime_jupyter.engines.hosts.dask import ClusterSize, DaskFinder, host_name, is_safe
from openruntime_jupyter.engines.hosts.finder import HostsSetup, InvalidHosts
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.tasks import TaskState
from tests.engines.hosts.dask_processes import HIDDEN, PRELOAD, DaskProcesses
from tests.engines.hosts.test_transfer import BIG, call, value
from tests.runtimes import busy, cell, completed, ended, failed, live, output_of, pickled, printed, runtime_in, submit, until
from tests.tiny_model import make_tiny_model

STARTED = 60.0
"""Seconds for a Dask worker and its agent to start."""


@contextlib.asynccontextmanager
async def runtime_over(finder: DaskFinder, folder: Path, **settings: Any) -> AsyncIterator[Runtime]:
    """Start a runtime whose tasks run only on the hosts of `finder`, and whose arrays travel to them."""
    async with runtime_in(folder, hosts=HostsSetup(finder, local=False, share_folders=False), **settings) as runtime:
        yield runtime


def host(runtime: Runtime, name: str) -> Host | None:
    return next((each for each in runtime.engine.hosts() if each.name == name), None)


async def reaches(runtime: Runtime, name: str, state: str) -> Host:
    """Wait until the host is in this state."""

    def there() -> Host | None:
        found = host(runtime, name)
        return found if found is not None and found.state == state else None

    return await until(there, STARTED, f"{name} is {state}")


@pytest.fixture(scope="module", autouse=True)
def _no_sockets_of_dask_are_left() -> Iterator[None]:
    """Collect the sockets of ended workers, which Dask does not close, before another test is blamed for them."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """Scheduler with the workers `one`, which has a nanny and no preload, and `two`."""
    processes = DaskProcesses(tmp_path_factory.mktemp("dask") / "cluster")
    make_tiny_model(processes.folder / "data" / "models" / "tiny")
    try:
        processes.worker("one", nanny=True)
        processes.worker("two", *PRELOAD)
        yield processes
    finally:
        processes.stop()


@pytest.fixture(scope="module")
def over_dask(
    cluster: DaskProcesses, jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runtime]:
    context = runtime_over(DaskFinder(cluster.address), tmp_path_factory.mktemp("runtime"))
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


async def test_workers_are_hosts_and_run_all_kinds_of_tasks(over_dask: Runtime, cluster: DaskProcesses) -> None:
    for name in ("one", "two"):
        found = await reaches(over_dask, name, "ready")
        assert found.address.startswith("tcp://127.0.0.1:")
        task_id = await cell(over_dask, "import os; print('OMP_NUM_THREADS' in os.environ)", device_preference=name)
        task = await completed(over_dask, task_id)
        assert task.result is not None
        assert task.result.device_used == f"{name}.device_0"
        assert (await printed(over_dask, task_id)).strip() == "False"
    assert await value(over_dask, await submit(over_dask, "call", pickled(lambda number: number + 1, 41))) == 42
    assert (await output_of(over_dask, "compute", {"expression": "6 * 7"}))["value"] == 42
    prompt = {"model": "tiny", "prompt": "a task", "max_tokens": 4}
    assert (await output_of(over_dask, "generate", prompt))["completion_tokens"] == 4


async def test_arrays_travel_by_a_second_comm(over_dask: Runtime) -> None:
    numbers = np.arange(BIG, dtype=np.float64)
    task_id, _ = await call(over_dask, lambda array: [array * 2], numbers, device_preference="two")
    (doubled,) = await value(over_dask, task_id)
    assert np.array_equal(doubled, numbers * 2)
    found = next(each for each in over_dask.hosts() if each.name == "two")
    assert not found.shares_folder


async def test_cancel_ends_task_on_worker_within_a_second(over_dask: Runtime) -> None:
    task_id = await busy(over_dask)
    await asyncio.wait_for(over_dask.cancel(task_id), 5)
    assert (await ended(over_dask, task_id)).status is TaskState.CANCELLED


async def test_worker_without_the_package_is_refused_and_stays_usable(over_dask: Runtime, cluster: DaskProcesses) -> None:
    (cluster.folder / "hidden.py").write_text(HIDDEN)
    process = cluster.worker("bare", "--preload", str(cluster.folder / "hidden.py"))
    found = await reaches(over_dask, "bare", "refused")
    assert found.problem == "it has no openruntime-jupyter"
    assert found.advice is not None
    assert found.advice.startswith(f"run `{sys.executable} -m pip install openruntime-jupyter==")
    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        assert await client.submit(abs, -3, workers=["bare"], allow_other_workers=False) == 3
    process.kill()
    await until(lambda: host(over_dask, "bare") is None, STARTED, "the refused worker has left")


async def test_killed_worker_fails_its_task_and_comes_back_by_its_nanny(over_dask: Runtime, cluster: DaskProcesses) -> None:
    before = (await reaches(over_dask, "one", "ready")).address
    task_id = await busy(over_dask, device_preference="one")
    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        (pid,) = (await client.run(os.getpid, workers=[before])).values()
    os.kill(pid, signal.SIGKILL)
    failure = await failed(over_dask, task_id)
    assert "he host one was lost while it ran" in failure.message
    back = await until(lambda: (again := host(over_dask, "one")) and again.state == "ready" and again.address != before, STARTED, "one")
    assert back
    await completed(over_dask, await cell(over_dask, "1", device_preference="one"))


async def test_late_worker_joins_and_leaves(over_dask: Runtime, cluster: DaskProcesses) -> None:
    process = cluster.worker("late")  # without --preload
    await reaches(over_dask, "late", "ready")
    await completed(over_dask, await cell(over_dask, "1", device_preference="late"))
    process.kill()
    await until(lambda: host(over_dask, "late") is None, STARTED, "the killed worker has left")


def test_lost_scheduler_is_reported_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RECONNECT_SECONDS", 0.5), ("CONNECT_SECONDS", 3.0), ("CLOSE_SECONDS", 1.0)):
        monkeypatch.setattr(dask, name, seconds)
    first = DaskProcesses(tmp_path / "first")
    first.worker("one", *PRELOAD)

    async def body() -> None:
        async with runtime_over(DaskFinder(first.address), tmp_path / "runtime") as runtime:
            await reaches(runtime, "one", "ready")
            task_id = await busy(runtime)
            first.scheduler.kill()
            failure = await failed(runtime, task_id)
            assert "he host one was lost while it ran" in failure.message
            problem = await until(lambda: runtime.engine.problem, 30, "the problem")
            assert f"The Dask scheduler at {first.address} does not respond" in problem
            assert "Dask ends its workers and the tasks on them. Pending tasks wait" in problem
            waiting = await cell(runtime, "print('back')")
            port = int(first.address.rpartition(":")[2])
            second = DaskProcesses(tmp_path / "second", port=port)
            try:
                second.worker("one", *PRELOAD)
                await completed(runtime, waiting)
                assert runtime.engine.problem is None
            finally:
                second.stop()

    try:
        live(body())
    finally:
        first.stop()


def test_marker_task_keeps_a_busy_cluster_from_its_idle_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("MARKER_SECONDS", 1.5), ("RENEW_SECONDS", 0.7), ("CLOSE_SECONDS", 1.0)):
        monkeypatch.setattr(dask, name, seconds)
    cluster = DaskProcesses(tmp_path / "cluster", "--idle-timeout", "2s")

    async def body() -> None:
        async with runtime_over(DaskFinder(cluster.address), tmp_path / "runtime") as runtime:
            async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
                start = client.submit(abs, 1, workers=["missing"])  # the cluster is not idle before our task runs
                cluster.worker("one", *PRELOAD)
                await reaches(runtime, "one", "ready")
                task_id = await busy(runtime, "import time\nprint('in', flush=True)\ntime.sleep(4)")
                await start.cancel()
            await completed(runtime, task_id)
            await until(lambda: cluster.scheduler.poll() is not None, 30, "the idle cluster ends")

    try:
        live(body())
    finally:
        cluster.stop()


def certificate(folder: Path, name: str) -> dict[str, Any]:
    """Make a certificate that is its own authority, and return Dask's configuration with it."""
    key, signed = str(folder / f"{name}.key"), str(folder / f"{name}.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*command, "-subj", f"/CN={name}", "-keyout", key, "-out", signed], check=True, capture_output=True)
    roles = {f"distributed.comm.tls.{role}.{part}": file for role in ROLES for part, file in (("key", key), ("cert", signed))}
    return {"distributed.comm.tls.ca-file": signed, **roles}


ROLES = ("scheduler", "worker", "client")


def test_encrypted_cluster_and_a_foreign_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, foreign = certificate(tmp_path, "ours"), certificate(tmp_path, "foreign")
    variables = {f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": value for name, value in ours.items()}
    cluster = DaskProcesses(tmp_path / "cluster", "--protocol", "tls", variables=variables)
    cluster.worker("one", *PRELOAD)

    async def body() -> None:
        with config.set(ours):
            async with runtime_over(DaskFinder(cluster.address), tmp_path / "runtime") as runtime:
                await completed(runtime, await cell(runtime, "1"))
                assert (await reaches(runtime, "one", "ready")).address.startswith("tls://")
        with config.set(foreign):
            async with runtime_over(DaskFinder(cluster.address), tmp_path / "runtime") as runtime:
                problem = await until(lambda: runtime.engine.problem, STARTED, "the problem")
                assert f"The Dask scheduler at {cluster.address} does not respond" in problem
                assert "certificate" in problem.lower()
                assert runtime.engine.hosts() == []

    try:
        live(body())
    finally:
        cluster.stop()


class Recorded:
    """Cluster that records requested sizes."""

    def __init__(self, workers: int) -> None:
        self.worker_spec = dict.fromkeys(range(workers))
        self.asked: list[Any] = []

    def scale(self, workers: int) -> None:
        self.asked.append(workers)

    async def scale_down(self, names: list[Any]) -> None:
        self.asked.append(names)


async def test_cluster_grows_with_the_queue_and_idle_workers_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "IDLE_SECONDS", 0.0)
    cluster = Recorded(1)
    size = ClusterSize(cluster, 1, 4)
    await size.adjust({"worker-0": "0"}, set())
    size.pending = 2
    await size.adjust({"worker-0": "0"}, {"worker-0"})
    await size.adjust({"worker-0": "0"}, {"worker-0"})
    size.pending = 100
    await size.adjust({"worker-0": "0", "worker-1": "1"}, {"worker-0", "worker-1"})
    assert cluster.asked == [3, 4]
    size.pending = 0
    cluster.worker_spec = dict.fromkeys(range(4))
    members = {f"worker-{number}": str(number) for number in range(4)}
    await size.adjust(members, {"worker-2"})
    assert cluster.asked == [3, 4, [0, 1, 3]]
    await size.adjust({"worker-2": "2"}, set())
    assert len(cluster.asked) == 3


async def test_workers_that_do_not_join_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    size = ClusterSize(Recorded(2), None, None)
    assert size.shortage(1) is None
    monkeypatch.setattr(dask, "JOIN_SECONDS", 0.0)
    assert (size.shortage(1) or "").startswith("1 of 2 workers of the Dask cluster have not joined for 0 s")


async def test_cluster_without_limits_keeps_its_size() -> None:
    cluster = Recorded(2)
    size = ClusterSize(cluster, None, None)
    size.pending = 10
    await size.adjust({"worker-0": "0", "worker-1": "1"}, set())
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("address", "safe"),
    [
        ("tls://10.0.0.1:8786", True),
        ("wss://node:443", True),
        ("inproc://10.0.0.1/2/3", True),
        ("tcp://127.0.0.1:8786", True),
        ("tcp://[::1]:8786", True),
        ("localhost:8786", True),
        ("tcp://10.0.0.1:8786", False),
        ("10.0.0.1:8786", False),
        ("ws://node:80", False),
        ("ucx://node:80", False),
    ],
)
def test_unencrypted_addresses_beyond_this_machine_are_rejected(address: str, safe: bool) -> None:
    assert is_safe(address) is safe
    DaskFinder(address, insecure=True)
    with contextlib.nullcontext() if safe else pytest.raises(InvalidHosts, match="would not be encrypted: set up TLS"):
        DaskFinder(address)


@pytest.mark.parametrize(
    ("name", "taken", "expected"),
    [
        ("gpu1", set(), "gpu1"),
        ("gpu 1/a", set(), "gpu-1-a"),
        ("3", set(), "worker-3"),
        ("tcp://10.0.0.7:4123", set(), "10.0.0.7"),
        ("tcp://10.0.0.7:4123", {"10.0.0.7"}, "10.0.0.7-4123"),
        ("a b", {"a-b", "a-b-4123"}, "a-b-4123-4123"),
        ("device_0", set(), "host-device_0"),
    ],
)
def test_names_of_hosts(name: str, taken: set[str], expected: str) -> None:
    assert host_name(name, "tcp://10.0.0.7:4123", "10.0.0.7", taken) == expected
