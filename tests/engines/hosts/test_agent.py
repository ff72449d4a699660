"""Tasks on another host: an agent over pipes runs them as this machine would."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.schemas.queries import TasksQuery
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import (
    ENDLESS,
    busy,
    cell,
    completed,
    ended,
    failed,
    output_of,
    pickled,
    printed,
    runtime_in,
    says,
    submit,
    until,
    value,
    waits_for,
)

DONE = {"retire": False, "keeps": False, "imported": []}
"""Fields of the last frame of a task."""


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> PipeWay:
    """Way to the host `far`."""
    return PipeWay("far", tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, way: PipeWay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Runtime whose tasks run on `far` only."""
    hosts = HostsSetup(PipeFinder(way), local=False)
    context = runtime_in(tmp_path_factory.mktemp("near"), hosts=hosts)
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


async def test_cell_runs_on_the_host_with_its_output_and_displays(runtime: Runtime) -> None:
    code = """
import sys
print('out')
print('err', file=sys.stderr)
from IPython.display import display, HTML
display(HTML('<b>bold</b>'))
6 * 7
"""
    task = await completed(runtime, await cell(runtime, code))
    assert task.device_used == "far.device_0"
    output = await runtime.tasks.output(task.task_id)
    kinds = [item.output_type for item in output.items]
    assert kinds == ["stream", "stream", "display_data", "execute_result"]
    assert [item.text for item in output.items[:2]] == ["out\n", "err\n"]
    assert output.items[3].data == {"text/plain": "42"}


async def test_function_and_operation_run_on_the_host(runtime: Runtime) -> None:
    assert await value(runtime, await submit(runtime, "call", pickled(os.getpid))) not in (os.getpid(), None)
    large = await value(runtime, await submit(runtime, "call", pickled(bytes, 3_000_000)))
    assert large == bytes(3_000_000)
    found = await output_of(runtime, "matrix_multiply", {"size": 8})
    assert found


async def test_error_names_the_line(runtime: Runtime) -> None:
    failure = await failed(runtime, await cell(runtime, "a = 1\nraise ValueError('no')"))
    assert (failure.kind, failure.type, failure.message) == ("raised", "ValueError", "ValueError: no")
    assert "raise ValueError('no')" in (failure.traceback or "")


async def test_progress_arrives(runtime: Runtime) -> None:
    code = "from openruntime_jupyter.current_task import progress\nimport time\nprogress(2, 4, 'half')\nwhile True: time.sleep(0.01)"
    task_id = await cell(runtime, code)

    async def half() -> bool:
        progress = (await runtime.tasks.get(task_id)).progress
        return progress is not None and (progress.n, progress.total, progress.message) == (2, 4, "half")

    await until(half, 20, "the progress")
    await runtime.cancel(task_id)


async def test_cancel_has_the_same_stages(runtime: Runtime) -> None:
    task = await runtime.cancel(await busy(runtime))
    assert (task.status, task.cancel_stage) == ("cancelled", "interrupt")
    stubborn = "import time\nwhile True:\n try:\n  print('in', flush=True)\n  time.sleep(9)\n except KeyboardInterrupt: pass"
    task = await runtime.cancel(await busy(runtime, stubborn))
    assert (task.status, task.cancel_stage) == ("cancelled", "terminate")


async def test_limits_hold_on_the_host(runtime: Runtime) -> None:
    task = await ended(runtime, await cell(runtime, ENDLESS, timeout=0.3))
    assert task.status == "timed_out"
    grows = "import time\nx = bytearray(600_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(60)"
    failure = await failed(runtime, await cell(runtime, grows, memory_limit=300_000_000))
    assert failure.kind == "memory"
    failure = await failed(runtime, await cell(runtime, "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), 9)"))
    assert (failure.kind, failure.signal, failure.last_output) == ("worker_died", 9, "last words\n")


async def test_worker_that_breaks_the_protocol_is_ended_by_its_agent(runtime: Runtime, way: PipeWay) -> None:
    speaks = "from openruntime_jupyter.current_task import current\nsend = current()._send.__self__._channel.send\n"
    progress = (13, b'{"n": "x", "total": null, "message": null}')
    display = (14, b'{"output_type": "display_data"}')
    for kind, body in (progress, display):
        failure = await failed(runtime, await cell(runtime, f"{speaks}send({kind}, {body!r})\nimport time; time.sleep(600)"))
        assert "it broke the protocol" in failure.message
    needs = {"needs": 1 << 63, "execution_time": 0, "mlx_peak": 0, "resident": 0, "children_peak": 0}
    impossible = f"{speaks}import json\nsend(18, json.dumps({{**{needs}, 'task_id': current().task_id, **{DONE}}}).encode())"
    failure = await failed(runtime, await cell(runtime, f"{impossible}\nimport time; time.sleep(600)"))
    assert "it broke the protocol (impossible measurements" in failure.message
    assert len(way.agents) == 1, "the connection was lost"


async def test_session_keeps_its_variables_on_the_host(runtime: Runtime) -> None:
    await completed(runtime, await cell(runtime, "a = 5", session="mine"))
    task_id = await cell(runtime, "print(a)", session="mine")
    await completed(runtime, task_id)
    assert await printed(runtime, task_id) == "5\n"
    (session,) = runtime.sessions.list()

    def listed() -> bool:
        return bool((runtime.sessions.list()[0].worker or "").startswith("far/worker_"))

    await until(listed, 5, "the session's worker")
    runtime.sessions.free(session.id)
    await until(lambda: all(each.session is None for each in runtime.engine.workers()), 10, "the end of its worker")


async def test_host_is_described(runtime: Runtime) -> None:
    (host,) = runtime.hosts()
    assert (host.name, host.state, host.devices, host.problem) == ("far", "ready", ["far.device_0"], None)
    assert host.memory_total == psutil.virtual_memory().total
    assert host.version == runtime.version
    (device,) = runtime.devices()
    assert (device.id, device.type) == ("far.device_0", "cpu")


async def test_queue_of_the_host_and_its_device_are_known(runtime: Runtime) -> None:
    for preference in ("far", "far.device_0"):
        task = await completed(runtime, await cell(runtime, "1", device_preference=preference))
        assert task.device_used == "far.device_0"


async def test_output_is_coalesced(runtime: Runtime) -> None:
    code = "import time\nfor i in range(300):\n    print(i, flush=True)\n    time.sleep(0.001)"
    task_id = await cell(runtime, code)
    await completed(runtime, task_id)
    assert await printed(runtime, task_id) == "".join(f"{number}\n" for number in range(300))


async def test_runtime_leaves_nothing_on_the_host(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    begun = time.monotonic()
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way), local=False)) as runtime:
        await busy(runtime)
        agent = psutil.Process(way.agent.pid)
        children = agent.children(recursive=True)
        assert children
    assert time.monotonic() - begun < 20
    assert way.agent.returncode == 0
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert [path.name for path in (tmp_path / "far" / "agents").iterdir()] == []
    assert [path.name for path in (tmp_path / "far" / "workers").iterdir()] == []


async def test_both_machines_serve_one_queue(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way))) as runtime:
        await until(lambda: len(runtime.lanes.devices) == 2, 30, "both lanes")
        tasks = [await busy(runtime) for _ in range(2)]
        assert {(await runtime.tasks.get(each)).device_used for each in tasks} == {"device_0", "far.device_0"}
        assert {worker.lane for worker in runtime.engine.workers()} >= {"device_0"}
        for each in tasks:
            assert (await runtime.cancel(each)).status == "cancelled"
        assert not (await runtime.list_tasks(TasksQuery(state=["running"]))).tasks


async def test_task_takes_turns_with_the_runtime_of_the_host(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    hosts = HostsSetup(PipeFinder(way), local=False)
    async with (
        runtime_in(tmp_path / "far", device_lock="all", label="http://far") as theirs,
        runtime_in(tmp_path / "near", device_lock="all", label="http://near", hosts=hosts) as runtime,
    ):
        holder = await busy(theirs, name="long training")
        task_id = await cell(runtime, "1")
        await waits_for(runtime, task_id, "http://far runs long training")
        task = await runtime.cancel(task_id)
        assert (task.status, task.cancel_stage) == ("cancelled", "queue")
        task_id = await busy_after(runtime, theirs, holder)
        waiting = await cell(theirs, "1")
        await waits_for(theirs, waiting, f"http://near runs python ({task_id})")
        await runtime.cancel(task_id)
        await completed(theirs, waiting)


async def busy_after(runtime: Runtime, theirs: Runtime, holder: str) -> str:
    """Submit an endless cell that waits for `holder`, cancel that one, and return the id of the cell once it runs."""
    task_id = await cell(runtime, ENDLESS)
    await waits_for(runtime, task_id, "http://far")
    await theirs.cancel(holder)
    await says(runtime, task_id, "in")
    assert (await runtime.tasks.get(task_id)).waiting_for is None
    return task_id
