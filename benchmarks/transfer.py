"""100 MB of float32 into a task on another host and back: by a shared folder, over pipes, and over Dask comms.

The peers are local tasks, and the faster of two ways with `distributed`: the array as an argument of `submit`, or sent before by `scatter`.

`python -m benchmarks.transfer` runs only these measurements.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.rows import HEAD, Missing, Row, at_most, median
from openruntime_jupyter.arrays import conversion, pickling
from openruntime_jupyter.engines.hosts.dask import DaskFinder
from openruntime_jupyter.engines.hosts.finder import Finder, HostsSetup
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtime.array_support import put
from tests.runtimes import until

SIZE = 25_000_000
PIPES = 3.0
"""Bound of the ratio of pipes to `submit`. A read of a pipe returns at most 256 KiB."""
SCATTER = 2.0
"""Bound of the ratio to `scatter`, which copies an array once, and through no file."""
ROUNDS = 4
TRIPS = 3

Array = np.ndarray[Any, Any]
Trip = Callable[[Array], Awaitable[None]]


def back(array: Any) -> Any:
    """Return the argument: the task that is measured."""
    return array


@asynccontextmanager
async def running(folder: Path, hosts: HostsSetup | None) -> AsyncIterator[Trip]:
    """Function that sends an array through a task of a runtime, as a local client does."""
    runtime = Runtime(Settings(data_dir=folder, cpu_slots=1), hosts=hosts)
    await runtime.start()
    await until(lambda: runtime.lanes.devices, 60, "a device")

    async def trip(array: Array) -> None:
        sent = await put(runtime.arrays, array)
        data = pickling.pack((back, (array,), {}), lambda array, layout: None)
        # Calls of one burst, as those of `map`, run in one process, like the peer's. A transfer does not include the start of a process.
        parameters = {"pickled": base64.b64encode(data).decode(), "arrays": [{"array": sent.id}], "burst": "benchmark"}
        task_id = await runtime.submission.submit(TaskRequest(operation="call", parameters=parameters), Caller())
        await runtime.arrays.remove(sent.id)
        task = await runtime.tasks.wait(task_id)
        assert task.result is not None, task.failure
        (result,) = task.result.arrays
        assert conversion.view(str((await runtime.arrays.info(result.id)).path), result.id)[-1] == array[-1]
        await runtime.arrays.remove(result.id)

    try:
        yield trip
    finally:
        await runtime.stop()


@asynccontextmanager
async def dask_cluster() -> AsyncIterator[Any]:
    """Client of a cluster of one worker with one thread."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise Missing("distributed is missing: pip install 'openruntime-jupyter[dask]'") from None
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.ERROR}
    async with LocalCluster(**options, asynchronous=True) as cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        yield client


def submitting(client: Any) -> Trip:
    """Function that sends an array as an argument of `submit`."""

    async def trip(array: Array) -> None:
        assert (await client.submit(back, array, pure=False))[-1] == array[-1]

    return trip


def scattering(client: Any) -> Trip:
    """Function that sends an array by `scatter`, as Dask advises for large arguments."""

    async def trip(array: Array) -> None:
        sent = await client.scatter(array, hash=False)
        assert (await client.submit(back, sent, pure=False))[-1] == array[-1]

    return trip


async def _measure(folder: Path) -> list[Row]:
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(dask_cluster())
        # Not the peer's cluster: the marker of a busy host occupies its only thread for up to 25 s.
        ours = await stack.enter_async_context(dask_cluster())
        trips: dict[str, Trip] = {"submit": submitting(peer), "scatter": scattering(peer)}
        finders: dict[str, Finder | None] = {
            "local": None,
            "shared": PipeFinder(PipeWay("far", folder / "far")),
            "pipes": PipeFinder(PipeWay("far", folder / "far")),
            "comms": DaskFinder(ours.cluster.scheduler_address),
        }
        for name, finder in finders.items():
            hosts = HostsSetup(finder, local=False, share_folders=name == "shared") if finder is not None else None
            trips[name] = await stack.enter_async_context(running(folder / name, hosts))
        found: dict[str, list[float]] = {name: [] for name in trips}
        array = np.arange(SIZE, dtype=np.float32)
        for _ in range(ROUNDS):  # alternate, so that a change of the machine's speed affects all
            for name, trip in trips.items():
                await trip(array)  # not measured: the one before still frees its memory
                for _ in range(TRIPS):
                    before = time.perf_counter()
                    await trip(array)
                    found[name].append(1e3 * (time.perf_counter() - before))
    took = {name: median(values) for name, values in found.items()}
    return [
        at_most("hosts: 100 MB in and out by a shared folder, and local", took["shared"], took["local"], 1.3, "ms"),
        at_most("hosts: 100 MB in and out over pipes, and by `distributed` submit", took["pipes"], took["submit"], PIPES, "ms"),
        at_most("hosts: 100 MB in and out over Dask comms, and by `distributed` submit", took["comms"], took["submit"], 1.8, "ms"),
        at_most("hosts: 100 MB in and out over Dask comms, and by `distributed` scatter", took["comms"], took["scatter"], SCATTER, "ms"),
    ]


def rows() -> list[Row]:
    """Return the rows."""
    # The agent in the Dask worker has its data in that folder too.
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, OPENRUNTIME_DATA_DIR=folder):
        return asyncio.run(_measure(Path(folder)))


if __name__ == "__main__":
    print(HEAD, *rows(), sep="\n")
