"""Cost of other hosts: tasks on agents over pipes, as `ssh` gives them, and in Dask workers, compared with local tasks and with Dask's own.

`python -m benchmarks.hosts` runs only these measurements.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.engine import NullObserver, job
from benchmarks.rows import HEAD, Row, at_least, at_most, median, within
from benchmarks.writers import TOKENS
from openruntime_jupyter.engines.hosts.connection import Connection, HostsOptions, connect
from openruntime_jupyter.engines.hosts.dask import DaskWay
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.engines.hosts.link import Link
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import Job, JobRunner, StopReason
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import ResponsePiece
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import until

CALLS = 200
ROUNDS = 5
LINES = 50
TASKS = 40
SLEEP = 0.05
WRITERS = (100, 1000)
WRITING = 3.0


class TextCount(NullObserver):
    """Observer that counts pieces of text and their characters."""

    def __init__(self) -> None:
        self.pieces = self.characters = 0

    def generated(self, piece: ResponsePiece) -> None:
        """Count the text."""
        self.pieces += 1
        self.characters += len(piece.text)


class FirstText(NullObserver):
    """Observer that notes the delay of each line, which is the time of its printing."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def printed(self, stream: str, text: str, omitted: int = 0) -> None:
        """Note the delays."""
        now = time.time()
        self.delays += [now - float(line) for line in text.split()]


async def trips(engine: JobRunner, lane: str) -> float:
    """Return the median seconds from an empty job to its outcome, one at a time."""
    observer, found = NullObserver(), []
    for number in range(CALLS):
        empty = job(number)
        empty.lane = lane
        before = time.perf_counter()
        await engine.run(empty, observer)
        found.append(time.perf_counter() - before)
    return median(found)


async def over_dask(folder: Path) -> list[Row]:
    """Return the row of agents in Dask workers; none where `distributed` is not installed."""
    if find_spec("distributed") is None:
        print("hosts: no row of Dask: pip install distributed")
        return []
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", local_directory=str(folder), asynchronous=True)
    async with cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        (address,) = (await client.scheduler.identity())["workers"]
        way = DaskWay("far", address, lambda: client, insecure=False)
        options = HostsOptions("rt", folder, ArrayStore(Settings(data_dir=folder), "rt", Machine()), share_folders=False)
        connection = await connect(way, Link(await way.connect()), options, {}, lambda silent: None, lambda used: None)
        serving = asyncio.ensure_future(connection.serve())
        ours, theirs = [], []
        await trips(connection, "far.device_0")
        for _ in range(ROUNDS):
            ours.append(await trips(connection, "far.device_0"))
            theirs.append(await submits(client))
        connection.close("the benchmark ended")
        await serving
        await connection.disconnect()
    name = "hosts: empty task on an agent in a Dask worker, p50, and client.submit"
    return [at_most(name, 1e6 * median(ours), 1e6 * median(theirs), 0.2, "µs")]


async def submits(client: Any) -> float:
    """Return the median seconds of an empty task of Dask's own."""
    found = []
    for _ in range(CALLS):
        before = time.perf_counter()
        await client.submit(int, pure=False)
        found.append(time.perf_counter() - before)
    return median(found)


async def line_delay(connection: Connection) -> float:
    """Return the median seconds from the print of a line to its arrival."""
    code = f"import time\\nfor _ in range({LINES}):\\n    print(time.time(), flush=True)\\n    time.sleep(0.15)"
    observer = FirstText()
    parameters = f'{{"code": "{code}"}}'.encode()
    await connection.run(Job("lines", "python", parameters, "far.device_0", "cpu", 0, None, 0, 1, "lines.1", private=True), observer)
    return median(observer.delays)


async def writers(folder: Path, number: int) -> tuple[float, float]:
    """Return the share of one core that the head needs for so many tasks that write tokens, and the messages per second."""
    way = PipeWay("far", folder / "writers", arguments=("-m", "benchmarks.writers"))
    options = HostsOptions("rt", folder, ArrayStore(Settings(data_dir=folder), "rt", Machine()), share_folders=False)
    connection = await connect(way, Link(await way.connect()), options, {}, lambda silent: None, lambda used: None)
    serving = asyncio.ensure_future(connection.serve())
    count = TextCount()
    jobs = [job(each) for each in range(number)]
    for each in jobs:
        each.lane = "far.device_0"
    runs = [asyncio.ensure_future(connection.run(each, count)) for each in jobs]
    await asyncio.sleep(1.0)
    count.pieces = count.characters = 0
    before, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(WRITING)
    seconds, used = time.perf_counter() - before, time.process_time() - cpu
    pieces, expected = count.pieces, number * TOKENS * len("token ") * seconds
    assert count.characters > 0.8 * expected, "the writers were too slow on this machine"
    for each in jobs:
        connection.halt(each.task_id, StopReason.CANCELLED)
    await asyncio.gather(*runs)
    connection.close("the benchmark ended")
    await serving
    await connection.disconnect()
    return used / seconds, pieces / seconds


async def throughput(folder: Path, hosts: int) -> float:
    """Return the tasks per second of tasks that sleep 50 ms on so many hosts of one slot."""
    ways = [PipeWay(f"host{number}", folder / f"{hosts}_{number}") for number in range(hosts)]
    runtime = Runtime(Settings(data_dir=folder / f"head_{hosts}", cpu_slots=1), hosts=HostsSetup(PipeFinder(*ways), local=False))
    await runtime.start()
    await until(lambda: len(runtime.lanes.devices) == hosts, 60, "the hosts are ready")
    request = TaskRequest(operation="python", parameters={"code": f"import time; time.sleep({SLEEP})"})
    session = [request.model_copy(update={"session": f"s{number}", "device_preference": f"host{number}"}) for number in range(hosts)]
    for each in session:  # a session keeps its process, so that only the sleep and the trip count
        await runtime.tasks.wait(await runtime.submission.submit(each, Caller()))
    before = time.perf_counter()
    ids = [await runtime.submission.submit(session[number % hosts], Caller()) for number in range(TASKS)]
    for task_id in ids:
        await runtime.tasks.wait(task_id)
    seconds = time.perf_counter() - before
    await runtime.stop()
    return TASKS / seconds


async def _measure(folder: Path) -> list[Row]:
    engine = LocalEngine(LocalOptions(folder, folder))
    await engine.start()
    await engine.devices()
    way = PipeWay("far", folder / "far")
    options = HostsOptions("rt", folder, ArrayStore(Settings(data_dir=folder), "rt", Machine()), share_folders=False)
    connection = await connect(way, Link(await way.connect()), options, {}, lambda silent: None, lambda used: None)
    serving = asyncio.ensure_future(connection.serve())
    near, far = [], []
    await trips(engine, "device_0")
    await trips(connection, "far.device_0")
    for _ in range(ROUNDS):  # alternate, so that a change of the machine's speed affects both
        near.append(await trips(engine, "device_0"))
        far.append(await trips(connection, "far.device_0"))
    delay = await line_delay(connection)
    connection.close("the benchmark ended")
    await serving
    await connection.disconnect()
    await engine.stop(5.0)
    one, two = await throughput(folder, 1), await throughput(folder, 2)
    written = [(number, *await writers(folder, number)) for number in WRITERS]
    return [
        at_most("hosts: empty task on an agent over pipes, p50, and local", 1e6 * median(far), 1e6 * median(near), 6.0, "µs"),
        within("hosts: delay of a line of output, p50", 1e3 * delay, 5.0, "ms"),
        at_least("hosts: 50 ms tasks on two hosts of one slot, and on one", two, one, 1.8, "tasks/s"),
        *(
            within(f"hosts: core of the head for {number:,} writers of {TOKENS} tokens/s, {rate:,.0f} messages/s", 100 * share, 25.0, "%")
            for number, share, rate in written
        ),
        *await over_dask(folder),
    ]


def rows() -> list[Row]:
    """Return the rows."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder)))


if __name__ == "__main__":
    print(HEAD, *rows(), sep="\n")
