"""Arrays, large parameters and results, models and environments of tasks on another host."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.arrays import conversion, pickling
from openruntime_jupyter.engines.hosts.connection import Connection
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.protocol import StopReason
from openruntime_jupyter.runtime.runtime import Runtime
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtime.array_support import put
from tests.runtimes import ENDLESS, cell, completed, ended, failed, printed, runtime_in, says, submit, until

BIG = 500_000


class CountingWay(PipeWay):
    """Way to an agent whose connections for arrays are counted."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.for_arrays = 0

    async def connect_for_arrays(self, folder: str) -> Any:
        """Count and connect."""
        self.for_arrays += 1
        return await super().connect_for_arrays(folder)


def hosts_of(way: PipeWay, *, share_folders: bool) -> HostsSetup:
    return HostsSetup(PipeFinder(way), local=False, share_folders=share_folders)


def opened(loop: asyncio.AbstractEventLoop, folder: Path, hosts: HostsSetup) -> Iterator[Runtime]:
    context = runtime_in(folder, hosts=hosts)
    yield loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> CountingWay:
    """Way to the host `far`."""
    return CountingWay("far", tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, way: CountingWay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Runtime whose tasks run on `far` only, which shares no folder."""
    yield from opened(jp_asyncio_loop, tmp_path_factory.mktemp("near"), hosts_of(way, share_folders=False))


@pytest.fixture(scope="module")
def sharing_way(tmp_path_factory: pytest.TempPathFactory) -> CountingWay:
    """Way to a host that shares folders."""
    return CountingWay("far", tmp_path_factory.mktemp("sharing"))


@pytest.fixture(scope="module")
def sharing(
    jp_asyncio_loop: asyncio.AbstractEventLoop, sharing_way: CountingWay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runtime]:
    """Runtime whose tasks run only on a host that shares folders."""
    yield from opened(jp_asyncio_loop, tmp_path_factory.mktemp("sharing_near"), hosts_of(sharing_way, share_folders=True))


async def call(runtime: Runtime, function: Any, *args: Any, **fields: Any) -> tuple[str, list[str]]:
    """Submit a call with its large arguments as arrays; return its id and theirs."""
    sent: list[Any] = []
    data = pickling.pack((function, args, {}), lambda array, layout: sent.append(array))
    ids = [(await put(runtime.arrays, each)).id for each in sent]
    parameters = {"pickled": base64.b64encode(data).decode(), "arrays": [{"array": each} for each in ids]}
    return await submit(runtime, "call", parameters, **fields), ids


async def value(runtime: Runtime, task_id: str) -> Any:
    """Return the result of a call as a local client reads it."""
    task = await completed(runtime, task_id)
    assert task.result is not None
    data, _ = await runtime.tasks.payload(task_id)
    views = [conversion.view(str((await runtime.arrays.info(each.id)).path), each.id) for each in task.result.arrays]
    return pickling.unpack(data if isinstance(data, bytes) else data.read_bytes(), views)


def far_files(way: PipeWay) -> list[str]:
    """Return the names of the host's array files, free blocks not included."""
    roots = [path.parent for path in Path("/dev/shm").glob("openruntime-*/home") if path.read_bytes() == os.fsencode(way.folder)]
    return sorted(path.name for root in [*roots, way.folder / "arrays"] for path in root.rglob("arr_*"))


def connection(runtime: Runtime) -> Connection:
    (found,) = runtime.engine._connections()  # type: ignore[attr-defined]
    assert isinstance(found, Connection)
    return found


@pytest.mark.parametrize("kind", ["sent", "shared"])
async def test_arrays_travel_both_ways(runtime: Runtime, way: CountingWay, sharing: Runtime, sharing_way: CountingWay, kind: str) -> None:
    used, via = (runtime, way) if kind == "sent" else (sharing, sharing_way)
    array = np.arange(BIG, dtype=np.float64)
    task_id, ids = await call(used, lambda a: [a * 2, a[:200_000] + 1], array)
    found = await value(used, task_id)
    assert np.array_equal(found[0], array * 2)
    assert np.array_equal(found[1], array[:200_000] + 1)
    assert (via.for_arrays > 0) == (kind == "sent")
    (host,) = used.hosts()
    assert host.shares_folder == (kind == "shared")

    for each in ids:
        await used.arrays.remove(each)
    await until(lambda: not far_files(via), 10, "the deletion of what the host had")


async def test_array_is_sent_once(runtime: Runtime, way: CountingWay) -> None:
    array = await put(runtime.arrays, np.ones(BIG))
    tasks = [await submit(runtime, "python", {"code": "print(a.sum())", "inputs": {"a": {"array": array.id}}}) for _ in range(3)]
    for task_id in tasks:
        await completed(runtime, task_id)
        assert await printed(runtime, task_id) == f"{float(BIG)}\n"
    assert len(far_files(way)) == 1
    await runtime.arrays.remove(array.id)


async def test_large_parameters_and_results_travel(runtime: Runtime) -> None:
    text = "x" * 3_000_000
    task_id, _ = await call(runtime, lambda data: data + data, text)
    assert await value(runtime, task_id) == text + text
    payloads = connection(runtime).welcome.folder
    await until(lambda: not list(Path(payloads, "payloads").iterdir()), 10, "the deletion of the payload on the host")


async def test_cancel_during_a_transfer(runtime: Runtime, way: CountingWay, monkeypatch: pytest.MonkeyPatch) -> None:
    array = await put(runtime.arrays, np.zeros(2 * BIG))
    begun = asyncio.Event()

    async def stuck(folder: str) -> Any:
        begun.set()
        await asyncio.sleep(600)

    transfer = connection(runtime)._arrays
    await transfer._close_idle()
    monkeypatch.setattr(transfer, "_connect", lambda: stuck(""))
    task_id = await submit(runtime, "python", {"code": "1", "inputs": {"a": {"array": array.id}}})
    await asyncio.wait_for(begun.wait(), 10)
    started = time.monotonic()
    task = await runtime.cancel(task_id)
    assert (task.status, task.cancel_stage) == ("cancelled", "queue")
    assert time.monotonic() - started < 2
    monkeypatch.undo()
    await completed(runtime, await submit(runtime, "python", {"code": "1", "inputs": {"a": {"array": array.id}}}))
    await runtime.arrays.remove(array.id)


async def test_cancel_just_after_a_transfer(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    array = await put(runtime.arrays, np.zeros(BIG))
    await until(lambda: runtime.lanes.devices, 60, "the host")
    far = connection(runtime)
    send, loop = far._arrays.send, asyncio.get_running_loop()

    async def halted_at_its_end(array_ids: Any) -> dict[str, int]:
        copies = await send(array_ids)
        loop.call_soon(far.halt, next(iter(far._of_task)), StopReason.CANCELLED)  # runs before the job continues
        return copies

    monkeypatch.setattr(far._arrays, "send", halted_at_its_end)
    task_id = await submit(runtime, "python", {"code": ENDLESS, "inputs": {"a": {"array": array.id}}})
    task = await ended(runtime, task_id, 20)
    assert (task.status, task.cancel_stage) == ("cancelled", "queue")
    await runtime.arrays.remove(array.id)


WRONG_RESULTS = """
import dataclasses, runpy, sys
from openruntime_jupyter.agent.arrays import HostArrays
finish = HostArrays.finish
async def wrong(self, job, outcome):
    outcome = await finish(self, job, outcome)
    return dataclasses.replace(outcome, arrays=tuple(dataclasses.replace(each, {change}) for each in outcome.arrays))
HostArrays.finish = wrong
sys.argv = ['agent', '-']
runpy.run_module('openruntime_jupyter.agent', run_name='__main__')
"""


@pytest.mark.parametrize(
    ("share_folders", "change", "problem"),
    [
        (False, "id='../../' + each.id", "is not the name of a result array of"),
        (False, "dtype='object'", "is invalid: unknown dtype 'object'"),
        (True, "place=99", "has the unknown place 99"),
    ],
)
async def test_result_that_agents_may_not_report(tmp_path: Path, share_folders: bool, change: str, problem: str) -> None:
    way = PipeWay("far", tmp_path / "far", arguments=("-c", WRONG_RESULTS.replace("{change}", change)))
    async with runtime_in(tmp_path / "near", hosts=hosts_of(way, share_folders=share_folders)) as runtime:
        task_id, _ = await call(runtime, lambda: np.zeros(BIG))
        failure = await failed(runtime, task_id)
        assert failure.message.startswith("The host far was lost while it ran: its agent sent an invalid message (")
        assert problem in failure.message


async def test_input_that_cannot_be_sent_fails_the_task(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    array = await put(runtime.arrays, np.zeros(BIG))

    async def refused() -> Any:
        raise OSError("no route to the host")

    transfer = connection(runtime)._arrays
    await transfer._close_idle()
    monkeypatch.setattr(transfer, "_connect", refused)
    failure = await failed(runtime, await submit(runtime, "python", {"code": "1", "inputs": {"a": {"array": array.id}}}))
    assert failure.message == f"The array {array.id} of 4.00 MB can't be sent to the host far: no route to the host"
    await runtime.arrays.remove(array.id)


async def test_folder_and_path_of_the_caller(runtime: Runtime, sharing: Runtime, tmp_path: Path) -> None:
    (tmp_path / "mine_only.py").write_text("ANSWER = 42")
    world = {"directory": str(tmp_path), "path": [str(tmp_path)], "python": "3.11"}
    code = "import os\nprint(os.getcwd())\nopen('left', 'w').close()\nimport mine_only\nprint(mine_only.ANSWER)"
    task_id = await submit(sharing, "python", {"code": code, "world": world})
    await completed(sharing, task_id)
    assert await printed(sharing, task_id) == f"{tmp_path}\n42\n"

    task_id = await submit(runtime, "python", {"code": code, "world": world})
    failure = await failed(runtime, task_id)
    assert "No module named 'mine_only'. The task ran on the host far, which does not share the caller's files: " in failure.message
    folder = (await printed(runtime, task_id)).strip()
    assert Path(folder).parent == Path(connection(runtime).welcome.folder, "work")
    await until(lambda: not Path(folder, "left").exists(), 5, "the end of what the task left")


async def test_session_keeps_its_folder(runtime: Runtime, tmp_path: Path) -> None:
    world = {"directory": str(tmp_path), "path": []}
    await completed(runtime, await submit(runtime, "python", {"code": "open('note', 'w').write('kept')", "world": world}, session="a"))
    task_id = await submit(runtime, "python", {"code": "print(open('note').read())", "world": world}, session="a")
    await completed(runtime, task_id)
    assert await printed(runtime, task_id) == "kept\n"
    runtime.sessions.free(runtime.sessions.list()[0].id)


async def test_pickles_wait_for_a_host_with_their_python(runtime: Runtime) -> None:
    here = ".".join(connection(runtime).welcome.python.split(".")[:2])
    parameters = {"pickled": base64.b64encode(pickling.pack((len, ("abc",), {}), None)).decode()}
    world = {"python": "3.9"}
    function = await submit(runtime, "call", {**parameters, "world": world})
    output = await submit(runtime, "python", {"code": "a = 1", "outputs": ["a"], "world": world})

    async def wait() -> bool:
        reasons = [(await runtime.tasks.get(each)).waiting_for for each in (function, output)]
        return reasons == [f"a host with Python 3.9 (far has {here})"] * 2

    await until(wait, 10, "the reasons")
    same = await submit(runtime, "call", {**parameters, "world": {"python": here}})
    assert await value(runtime, same) == 3
    await completed(runtime, await submit(runtime, "python", {"code": "1", "world": world}))  # it has no pickles
    for each in (function, output):
        assert (await runtime.cancel(each)).status == "cancelled"


async def test_killed_agent_leaves_no_arrays(tmp_path: Path) -> None:
    way = CountingWay("far", tmp_path / "far")
    async with runtime_in(tmp_path / "near", hosts=hosts_of(way, share_folders=False)) as runtime:
        array = await put(runtime.arrays, np.ones(BIG))
        running = await submit(runtime, "python", {"code": ENDLESS, "inputs": {"a": {"array": array.id}}})
        await says(runtime, running, "in")
        assert far_files(way)
        way.agent.kill()
        assert (await ended(runtime, running)).status == "failed"
        await completed(runtime, await cell(runtime, "1"))  # the next agent has started
        assert not far_files(way)
        assert await printed(runtime, await _sum(runtime, array.id)) == f"{float(BIG)}\n"
    assert not far_files(way)


async def _sum(runtime: Runtime, array_id: str) -> str:
    task_id = await submit(runtime, "python", {"code": "print(a.sum())", "inputs": {"a": {"array": array_id}}})
    await completed(runtime, task_id)
    return task_id
