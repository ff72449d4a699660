"""Reuse of array files: speed, limits, release, and protection while a file is still in use."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.arrays import blocks, conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.runtime.arrays import spool
from openruntime_jupyter.runtime.arrays import store as array_store
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.schemas.arrays import ArrayInfo
from tests.runtime.array_support import put, result, store_in
from tests.runtime.test_task_arrays import call
from tests.runtimes import completed, ended, runtime_in, says, submit, until

MIB = 1 << 20
SIZE = Layout((2 * MIB,), "uint8").size


def full(value: int, elements: int = 2 * MIB) -> np.ndarray[Any, Any]:
    return np.full(elements, value, np.uint8)


def number(info: ArrayInfo) -> int:
    """Return the inode number of an array's file."""
    return Path(str(info.path)).stat().st_ino


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable preparation of blocks, and make fetched results evictable immediately."""
    monkeypatch.setattr(array_store, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(spool.BlockCache, "prepare_next", lambda *arguments: None)


@pytest.mark.parametrize("spool_dir", ["", "disk"])
async def test_new_array_reuses_file_of_deleted_one(tmp_path: Path, spool_dir: str) -> None:
    async with store_in(tmp_path, spool_dir=spool_dir and str(tmp_path / spool_dir)) as store:
        first = await put(store, full(1))
        inode = number(first)
        await store.remove(first.id)
        assert store.page().warm_bytes == SIZE
        assert store.used_bytes == 0
        second = await put(store, full(2))
        assert number(second) == inode
        assert (conversion.view(str(second.path), "x") == 2).all()
        assert store.page().warm_bytes == 0
        await store.remove(second.id)
        folder = Path(str(second.path)).parent
    assert not folder.exists()


async def test_file_is_released_when_worker_with_view_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "RETRY_KEPT_SECONDS", 0.0)

    def hold(array: Any) -> None:
        import os
        import time

        os.write(1, b"holds %d end\n" % os.getpid())
        time.sleep(60)

    async with runtime_in(tmp_path) as runtime:
        store = runtime.arrays
        task_id = await call(runtime, hold, full(1))
        await says(runtime, task_id, "end")
        (info,) = store.page().arrays
        inode = number(info)
        await store.remove(info.id)
        assert store.used_bytes == SIZE, "its bytes still count"
        assert number(await put(store, full(2))) != inode
        output = await runtime.tasks.output(task_id)
        os.kill(int("".join(item.text or "" for item in output.items).split()[1]), signal.SIGKILL)
        assert (await ended(runtime, task_id)).status == "failed"
        await until(lambda: store.page().warm_bytes == SIZE, what="the free block")
        assert number(await put(store, full(3))) == inode


async def test_results_reuse_files_and_finished_task_releases_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "SWEEP_SECONDS", 1000.0)

    async with runtime_in(tmp_path) as runtime:
        store = runtime.arrays
        for value in range(3):
            task_id = await call(runtime, lambda array: array + 1, full(value))
            task = await ended(runtime, task_id)
            assert task.result is not None, task.error
            (sent,) = [each for each in store.page().arrays if each.task_id is None]
            info = await store.info(task.result.arrays[0].id)
            assert (conversion.view(str(info.path), "x") == value + 1).all()
            await store.remove(sent.id)
            await until(lambda: store.page().warm_bytes == SIZE, what="the input's file, without a sweep")
            if value == 0:
                spare = blocks.free(Path(str(info.path)).parent)[0].path.stat().st_ino
                first = await put(store, full(7))
                assert number(first) == spare
                await store.remove(first.id)
                await store.remove(info.id)
        assert len({path.stat().st_ino for place in store._spool.places for path in place.folder.rglob("*") if path.is_file()}) == 3


async def test_concurrent_deletes_keep_next_array_of_that_name(store: ArrayStore) -> None:
    for value in range(20):
        info = await put(store, full(value), "weights")
        await asyncio.gather(*(store.remove("weights") for _ in range(3)), store.sweep(), return_exceptions=True)
        assert not Path(str(info.path)).exists()
        assert store.page().warm_bytes == SIZE


async def test_free_files_are_bounded_by_setting(tmp_path: Path) -> None:
    for most in (0, 2 * SIZE):
        async with store_in(tmp_path, warm_bytes=most) as store:
            info = [await put(store, full(value)) for value in range(4)]
            for each in info:
                await store.remove(each.id)
            assert store.page().warm_bytes == most


async def test_free_files_count_towards_quota_and_are_released_first(tmp_path: Path) -> None:
    async with store_in(tmp_path, array_bytes=3 * SIZE) as store:
        for each in [await put(store, full(value)) for value in range(3)]:
            await store.remove(each.id)
        assert store.page().warm_bytes == 3 * SIZE
        large = await put(store, full(1, 4 * MIB))
        page = store.page()
        assert page.total_bytes + page.warm_bytes <= 3 * SIZE
        assert page.warm_bytes
        assert (conversion.view(str(large.path), "x") == 1).all()


async def test_free_files_are_released_in_small_memory_folder(tmp_path: Path, small_tmpfs: Path) -> None:
    async with store_in(tmp_path, spool_dir=str(small_tmpfs), warm_bytes=8 * MIB) as store:
        for each in [await put(store, full(value)) for value in range(3)]:
            await store.remove(each.id)
        assert store.page().warm_bytes == 3 * SIZE
        info = await put(store, full(1, 5 * MIB))
        assert (conversion.view(str(info.path), "x") == 1).all()
        await store.remove(info.id)
        assert store.places()[0][1] > 5 * MIB, "a result may use the free blocks"
        array_id = await result(store, "task_a", full(2, 7 * MIB))
        assert (conversion.view(store.path_of(array_id), "x") == 2).all()


async def test_free_files_expire_and_are_released_when_memory_is_short(store: ArrayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.remove((await put(store, full(1))).id)
    await store.sweep()
    assert store.page().warm_bytes == SIZE
    monkeypatch.setattr(spool, "IDLE_SECONDS", 0.0)
    await store.sweep()
    assert store.page().warm_bytes == 0
    monkeypatch.setattr(spool, "IDLE_SECONDS", 600.0)
    await store.remove((await put(store, full(1))).id)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda now=time.time: now() - 86_400)
        await store.sweep()
    assert store.page().warm_bytes == 0, "the clock was set back"
    await store.remove((await put(store, full(1))).id)
    monkeypatch.setattr(spool, "LOW_MEMORY", 2.0)
    await store.sweep()
    assert store.page().warm_bytes == (0 if store._spool.places[0].in_memory else SIZE)


@pytest.mark.not_over("agent", "dask", reason="local free files do not count for hosts")
async def test_task_gets_memory_of_free_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with runtime_in(tmp_path) as runtime:
        store = runtime.arrays
        if not store._spool.places[0].in_memory:
            pytest.skip("no folder in memory here")
        info = await put(store, full(1))
        await store.remove((await put(store, full(2))).id)
        assert store.page().warm_bytes
        monkeypatch.setattr(runtime._admission, "free", lambda lane: 0 if store.page().warm_bytes else 10**12)
        await completed(runtime, await submit(runtime, "compute", {"expression": "sum(x)", "inputs": {"x": {"array": info.id}}}))
        assert store.page().warm_bytes == 0
        assert not store.release_memory(1)


async def test_exposed_file_is_never_reused(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store, store_in(tmp_path, "rt_2") as other:
        info = store.exposed(await put(store, full(1)))
        mapped = np.memmap(str(info.path), np.uint8, "r", Layout((2 * MIB,), "uint8").offset)
        assert other.exposed(await other.info(info.id)).path is None, "its use is unknown to the runtime"
        await store.remove(info.id)
        assert store.page().warm_bytes == 0
        await put(store, full(2))
        assert (mapped == 1).all()


async def test_files_of_dead_runtime_are_never_reused(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        kept = await result(store, "task_a", full(2))
        await store.remove((await put(store, full(1))).id)
        assert store.page().warm_bytes == SIZE
    async with store_in(tmp_path, "rt_2") as store:
        assert [each.id for each in store.page().arrays] == [kept]
        assert store.page().warm_bytes == 0
        await store.remove(kept)
        assert store.page().warm_bytes == 0


async def test_files_of_many_fetched_results_are_reused(tmp_path: Path) -> None:
    async with store_in(tmp_path, warm_bytes=2 * SIZE) as store:
        fetched = [await result(store, f"task_{name}", full(1)) for name in "abc"]
        unfetched = await result(store, "task_d", full(2))
        for each in fetched[:2]:
            await store.info(each)
        await put(store, full(3))
        assert {each.id for each in store.page().arrays} >= {*fetched, unfetched}, "at most the limit"
        await store.info(fetched[2])
        inode = Path(store.path_of(fetched[0])).stat().st_ino
        await put(store, full(4))
        await until(lambda: store.page().warm_bytes == SIZE, what="the oldest result's file")
        assert {each.id for each in store.page().arrays} >= {*fetched[1:], unfetched}
        assert number(await put(store, full(5))) == inode


async def test_next_file_of_a_size_is_prepared_in_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    async with store_in(tmp_path) as store:
        if not store._spool.places[0].in_memory:
            pytest.skip("no folder in memory here")
        first = await put(store, full(1))
        await until(lambda: store.page().warm_bytes == SIZE, what="a free file")
        (block,) = blocks.free(Path(str(first.path)).parent)
        inode = block.path.stat().st_ino
        assert number(await put(store, full(2))) == inode
    async with store_in(tmp_path, warm_bytes=SIZE - 1) as store:
        await put(store, full(1))
        await until(lambda: not store._blocks._tasks, what="nothing to come")
        assert store.page().warm_bytes == 0


READER = """
import random, sys
from openruntime_jupyter.errors import ArrayNotFound
from openruntime_jupyter.arrays import conversion
kept = {}
for line in sys.stdin:
    value, path = line.split()
    mapped = "mapped"
    try:
        kept[random.randrange(3)] = (int(value), conversion.view(path, "x"))
    except ArrayNotFound:
        mapped = "too late"
    for wanted, view in kept.values():
        assert (view == wanted).all(), (wanted, view[0])
    print(value, mapped, flush=True)
"""


class Reader:
    """Process that maps the last few arrays sent to it and checks them repeatedly."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, value: int, info: ArrayInfo) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{value} {info.path}\n")
        self.process.stdin.flush()

    def has(self, value: int) -> bool:
        """Return whether it mapped the array in time, after its first check."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.split()[0] == str(value):
                return "mapped" in line
        raise AssertionError(f"a reader saw other numbers: {self.process.wait()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


async def come_and_go(store: ArrayStore, readers: list[Reader], values: range) -> set[int]:
    """Create arrays of all values, delete each at once or after the readers mapped it, and return their inode numbers."""
    files = set()
    for value in values:
        info = await put(store, full(value))
        files.add(number(info))
        for each in readers:
            each.send(value, info)
        if value % 3 == 0:
            assert all(each.has(value) for each in readers)
        await store.remove(info.id)
    return files


async def test_readers_never_see_data_of_another_array(store: ArrayStore) -> None:
    readers = [Reader(), Reader()]
    try:
        files = await come_and_go(store, readers, range(61))
        readers.pop().kill()
        readers.append(Reader())
        files |= await come_and_go(store, readers, range(61, 121))
    finally:
        for each in readers:
            each.kill()
    assert len(files) < 60, "most files were reused"
    await store.sweep()
    await until(lambda: store.used_bytes == 0, what="the end of what was deleted: one may have been on its way already")
