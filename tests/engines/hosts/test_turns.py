"""Turns on a host's devices: while another runtime has a device, tasks wait in the queue as on one machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.runtime.runtime import Runtime
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import busy, cell, completed, runtime_in, until, waits_for

FAR = {"device_preference": "far", "wait": False}


@asynccontextmanager
async def shared_host(folder: Path, *others: str, slots: int = 1) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Yield a runtime on the host `far`, and one that uses that host and `others`, all with so many slots."""
    hosts = HostsSetup(PipeFinder(*(PipeWay(name, folder / name) for name in ("far", *others))), local=False)
    async with (
        runtime_in(folder / "far", label="http://far", device_lock="all", cpu_slots=slots) as theirs,
        runtime_in(folder / "near", label="http://near", device_lock="all", cpu_slots=slots, hosts=hosts) as runtime,
    ):
        await until(lambda: len(runtime.devices()) == 1 + len(others), 60, "the hosts")
        yield theirs, runtime


@pytest.fixture(scope="module")
def both(jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Runtime]]:
    """The runtime of the host `far`, and one that uses the hosts `far` and `free`."""
    context = shared_host(tmp_path_factory.mktemp("hosts"), "free")
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


async def test_tasks_wait_in_the_queue_while_the_host_uses_its_device(both: tuple[Runtime, Runtime]) -> None:
    theirs, runtime = both
    holder = await busy(theirs, name="long training")
    first = await cell(runtime, "1", **FAR)
    await waits_for(runtime, first, "http://far runs long training")
    urgent = await cell(runtime, "2", priority=10, **FAR)
    await waits_for(runtime, urgent, "http://far runs long training")
    tasks = [await runtime.tasks.get(each) for each in (urgent, first)]
    assert [(task.status, task.position, task.estimated_start, task.device_used) for task in tasks] == [
        ("pending", 1, None, None),
        ("pending", 2, None, None),
    ]
    device = next(device for device in runtime.devices() if device.id == "far.device_0")
    assert (device.status, device.running, device.pending) == ("available", 0, 2)
    assert runtime.lanes.running == 0
    for session in (None, "a", "a"):
        task = await completed(runtime, await cell(runtime, "1", session=session))
        assert task.device_used == "free.device_0", "tasks without a preference go to another host"

    begun = time.monotonic()
    assert (await runtime.cancel(first)).cancel_stage == "queue"
    assert time.monotonic() - begun < 0.5
    await theirs.cancel(holder)
    done = await completed(runtime, urgent)
    assert (done.device_used, done.attempt) == ("far.device_0", 1)


async def test_device_is_kept_for_a_moment_only(both: tuple[Runtime, Runtime]) -> None:
    theirs, runtime = both
    holder = await busy(theirs)
    waiting = await cell(runtime, "1", **FAR)
    await waits_for(runtime, waiting, "http://far")
    await runtime.cancel(waiting)  # so that nothing uses the device once the agent has it
    await theirs.cancel(holder)
    await completed(theirs, await cell(theirs, "1"), 20)
    await completed(runtime, await cell(runtime, "1", **FAR), 20)


async def test_a_free_slot_beside_a_taken_one_is_used(tmp_path: Path) -> None:
    async with shared_host(tmp_path, slots=2) as (theirs, runtime):
        holder = await busy(theirs)
        here = await busy(runtime)
        second = await cell(runtime, "1", **FAR)
        await waits_for(runtime, second, "http://far")
        await runtime.cancel(here)
        await completed(runtime, second, 20)
        await theirs.cancel(holder)
