"""Arrays and payloads between a runtime and the agent of a host, over a second connection."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.agent.arrays import HostArrays, serve
from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.engines.hosts.arrays import ArrayTransfer, TransferFailed
from openruntime_jupyter.engines.hosts.link import ByteStream, PipeStream, pipe_stream
from openruntime_jupyter.engines.protocol import Completed, Job, Measurements, StoredArray
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, StorageUnavailable
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.runtime.settings import Settings
from tests.runtime.array_support import put, store_in

Array = np.ndarray[Any, Any]


class CountedStream:
    """Stream that counts bytes, and ends after `most` written ones."""

    def __init__(self, inner: ByteStream, most: float) -> None:
        self.written = 0
        self._inner = inner
        self._most = most

    async def read(self) -> bytes | memoryview:
        return await self._inner.read()

    async def write(self, data: bytes) -> None:
        self.written += len(data)
        if self.written > self._most:
            await self._inner.close()
            raise ConnectionResetError("cut by the test")
        await self._inner.write(data)

    async def close(self) -> None:
        await self._inner.close()


@dataclass
class Pair:
    """Stores of a runtime and of a host with connections between them. The first streams are cut after `cuts` bytes."""

    store: ArrayStore
    agent: HostArrays
    folder: Path
    cuts: list[float] = field(default_factory=list)
    streams: list[CountedStream] = field(default_factory=list)
    serving: list[asyncio.Task[None]] = field(default_factory=list)

    async def connect(self) -> ByteStream:
        here, there = socket.socketpair()
        theirs = await pipe_stream(os.dup(there.fileno()), there.detach())
        self.serving.append(asyncio.create_task(serve(theirs, self.agent.folder)))
        ours = await pipe_stream(os.dup(here.fileno()), here.detach())
        most = self.cuts.pop(0) if self.cuts else float("inf")
        self.streams.append(CountedStream(ours, most))
        return self.streams[-1]

    @property
    def files(self) -> list[str]:
        """Names of the agent's arrays, free blocks not included."""
        return [path.name for folder, _, _ in self.agent.places() for path in Path(folder).iterdir() if path.is_file()]

    def hosts_view(self, copies: dict[str, int], array_id: str) -> Array:
        """Read the host's copy of an array as a worker does."""
        path = self.agent.lease(copies, "task_1")[array_id]
        try:
            return np.array(conversion.view(path, array_id))
        finally:
            self.agent.release("task_1")


@asynccontextmanager
async def pair_in(folder: Path, **agent_settings: Any) -> AsyncIterator[tuple[Pair, ArrayTransfer]]:
    (folder / "host" / "payloads").mkdir(parents=True)
    (folder / "payloads").mkdir()
    settings = Settings(
        data_dir=folder / "host", embedded=True, array_seconds=0.0, spool_dir=str(folder / "host" / "spool"), **agent_settings
    )
    agent = HostArrays(settings, folder / "host", folder / "host" / "payloads", Machine())
    await agent.open()
    async with store_in(folder / "runtime", spool_dir=str(folder / "spool")) as store:
        pair = Pair(store, agent, folder)
        transfer = ArrayTransfer("mac2", pair.connect, store, folder / "payloads")
        try:
            yield pair, transfer
        finally:
            await transfer.close()
            await asyncio.wait_for(asyncio.gather(*pair.serving), 10)
            await agent.stop()


async def host_result(pair: Pair, array: Array) -> StoredArray:
    """Store a result on the host as its worker and session do."""
    layout = conversion.store(array, Path(pair.agent.places()[0][0]) / "arr_a.1.0.part")
    stored = StoredArray("arr_a.1.0", layout.shape, layout.dtype, layout.kind, 0)
    job = Job("task_a", "call", b"{}", "device_0", "cpu", 0, None, 0, 1, "task_a.1", array_name="arr_a.1")
    outcome = await pair.agent.finish(job, Completed({}, Measurements(), arrays=(stored,)))
    assert isinstance(outcome, Completed)
    return stored


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
async def test_array_travels_both_ways(tmp_path: Path, size: int) -> None:
    array = np.random.default_rng(1).integers(0, 1000, size).astype("int32")
    async with pair_in(tmp_path) as (pair, transfer):
        sent = await put(pair.store, array)
        copies = await transfer.send([sent.id])
        assert np.array_equal(pair.hosts_view(copies, sent.id), array)

        result = await host_result(pair, array * 2)
        (fetched,) = await transfer.fetch([result])
        references = await pair.store.adopt("me", [fetched])
        assert np.array_equal(conversion.view(pair.store.path_of(references[0].id), "result"), array * 2)
        await pair.agent.discard(transfer.outdated(copies), [result.id])
        await until(lambda: len(pair.files) == 1)  # the input


async def test_array_on_the_host_is_not_sent_again(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        sent = await put(pair.store, np.ones(1_000_000, "float32"))
        first, second = await asyncio.gather(transfer.send([sent.id]), transfer.send([sent.id]))
        assert first == second == await transfer.send([sent.id])
        assert 4_000_000 < sum(stream.written for stream in pair.streams) < 4_010_000


async def test_array_of_a_reused_name_is_sent_again(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        await put(pair.store, np.zeros(1000, "float32"), "weights")
        first = await transfer.send(["weights"])
        pair.agent.lease(first, "task_0")  # a task still uses it
        await pair.store.remove("weights")
        old = transfer.forget("weights")
        assert old is not None
        await put(pair.store, np.ones(1000, "float32"), "weights")
        copies = await transfer.send(["weights"])
        await pair.agent.discard([old])
        assert pair.hosts_view(copies, "weights").sum() == 1000
        assert len(pair.files) == 2
        pair.agent.release("task_0")
        await until(lambda: len(pair.files) == 1)


async def test_cut_connection_is_replaced_once(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        sent = await put(pair.store, np.arange(3_000_000, dtype="float32"))
        pair.cuts = [5_000_000]
        copies = await transfer.send([sent.id])
        assert len(pair.streams) == 2
        await until(lambda: len(pair.files) == 1)
        assert pair.hosts_view(copies, sent.id)[-1] == 2_999_999


async def test_second_cut_fails_the_transfer(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        pair.cuts = [5_000_000, 5_000_000]
        sent = await put(pair.store, np.arange(3_000_000, dtype="int32"))
        with pytest.raises(TransferFailed, match=r"of 12\.0 MB can't be sent to the host mac2: .*cut by the test"):
            await transfer.send([sent.id])
        await until(lambda: not pair.files)  # no unfinished file is left


async def test_cancelled_transfer_leaves_no_file(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        sent = await put(pair.store, np.zeros(50_000_000, "float32"))
        sending = asyncio.create_task(transfer.send([sent.id]))
        await until(lambda: any(stream.written > 8_000_000 for stream in pair.streams))
        sending.cancel()
        await asyncio.wait({sending})
        await until(lambda: not pair.files)
        assert sum(stream.written for stream in pair.streams) < 200_000_000


async def test_array_too_large_for_the_host(tmp_path: Path) -> None:
    async with pair_in(tmp_path, array_bytes=3_000_000) as (pair, transfer):
        first = await put(pair.store, np.zeros(500_000, "float32"))
        second = await put(pair.store, np.zeros(500_000, "float32"))
        huge = await put(pair.store, np.zeros(1_000_000, "float32"))
        with pytest.raises(InvalidRequest, match="array_bytes"):
            await transfer.send([huge.id])
        await transfer.send([first.id])
        with pytest.raises(StorageUnavailable, match="No room for an array"):
            await transfer.send([second.id])


async def test_unused_copies_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openruntime_jupyter.runtime.arrays.store.COPY_SECONDS", 0.0)
    async with pair_in(tmp_path, array_bytes=3_000_000) as (pair, transfer):
        first = await put(pair.store, np.zeros(500_000, "float32"))
        second = await put(pair.store, np.ones(500_000, "float32"))
        evicted = await transfer.send([first.id])
        assert pair.hosts_view(await transfer.send([second.id]), second.id)[0] == 1
        with pytest.raises(StorageUnavailable, match="deleted a copy"):
            pair.agent.lease(evicted, "task_2")
        assert pair.hosts_view(await transfer.send([first.id]), first.id)[0] == 0


async def test_result_without_room_here_leaves_no_file(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        result = await host_result(pair, np.zeros(1_000_000))
        folder = pair.store.places()[0][0]
        pair.store.quota = 1_000_000
        pair.store._space_read_at = float("-inf")
        with pytest.raises(StorageUnavailable, match=r"A result array of 8\.02 MB does not fit"):
            await transfer.fetch([result])
        assert not list(Path(folder).glob("*.part"))
        unknown = StoredArray("arr_b.1.0", (3,), "int8", "numpy", 0)
        with pytest.raises(ArrayNotFound):
            await transfer.fetch([unknown])
        assert not list(Path(folder).glob("*.part"))


async def test_payload_is_fetched(tmp_path: Path) -> None:
    data = os.urandom(9_000_000)
    async with pair_in(tmp_path) as (pair, transfer):
        theirs = tmp_path / "host" / "payloads" / "task_1.1"
        theirs.write_bytes(data)
        await transfer.fetch_payload("task_1.1", len(data))
        path = tmp_path / "payloads" / "task_1.1"
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o600
        await pair.agent.discard(payloads=["task_1.1"])
        assert not theirs.exists()
        with pytest.raises(ArrayNotFound):
            await transfer.fetch_payload("task_2.1", 10)
        assert not (tmp_path / "payloads" / "task_2.1").exists()


@pytest.mark.parametrize("received", [b"\0\0\0\5\0\0\0\0hello", b"\xff" * 100])
async def test_invalid_bytes_end_the_connection(tmp_path: Path, received: bytes) -> None:
    async with pair_in(tmp_path) as (pair, _):
        stream = await pair.connect()
        await stream.write(received)
        assert await asyncio.wait_for(stream.read(), 10) == b""
        await stream.close()


async def test_connection_is_handed_over_to_the_agent(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, _):
        pair.agent.listen()
        code = f"from openruntime_jupyter.agent.arrays import hand_over; hand_over({pair.agent.folder!r})"
        processes = []

        async def connect() -> ByteStream:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=-1, stdout=-1)
            processes.append(process)
            assert process.stdout is not None
            assert process.stdin is not None
            return PipeStream(process.stdout, process.stdin)

        transfer = ArrayTransfer("mac2", connect, pair.store, tmp_path / "payloads")
        array = np.arange(2_000_000)
        sent = await put(pair.store, array)
        copies = await transfer.send([sent.id])
        assert np.array_equal(pair.hosts_view(copies, sent.id), array)
        await transfer.close()
        assert await asyncio.wait_for(processes[0].wait(), 10) == 0


async def test_connection_to_no_session_is_closed(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as (pair, transfer):
        sent = await put(pair.store, np.zeros(10))
        pair.agent.folder = "/nowhere"
        with pytest.raises(TransferFailed, match="connection"):
            await transfer.send([sent.id])
