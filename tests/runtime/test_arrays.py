"""Array store: allocation, leases, quota, expiry, killed processes, and takeover."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from openruntime_jupyter.arrays import conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.errors import ArrayConflict, ArrayNotFound, InvalidRequest, StorageUnavailable
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.arrays import spool
from openruntime_jupyter.runtime.arrays import store as array_store
from openruntime_jupyter.runtime.arrays.store import ArrayRecord, ArrayStore, result_name, task_of
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.arrays import ArrayInfo
from tests.runtime.array_support import MB, SMALL, put, result, store_in


async def removed(store: ArrayStore, name: str | None = None) -> str:
    """Store an array, remove its file, and return its id."""
    info = await put(store, np.ones(250_000, np.float32), name)
    Path(str(info.path)).unlink()
    return info.id


async def test_array_with_removed_file_is_unknown(store: ArrayStore) -> None:
    for use in (store.info, store.remove):
        with pytest.raises(ArrayNotFound, match="its file was deleted"):
            await use(await removed(store))
    assert store.page().arrays == []
    assert store.used_bytes == 0
    with pytest.raises(InvalidRequest, match="unknown array"):
        store.lease([await removed(store)], "task_1")
    assert (await store.allocate(SMALL, "me", await removed(store, "weights"))).state == "writing", "its name is free"


async def test_sweep_logs_array_with_removed_file(store: ArrayStore, caplog: pytest.LogCaptureFixture) -> None:
    gone, kept = await removed(store), await put(store, np.ones(4))
    begun = await store.allocate(SMALL, "me")
    await store.sweep()
    assert {each.id for each in store.page().arrays} == {kept.id, begun.id}
    assert [record.getMessage().startswith(f"The array {gone} is gone") for record in caplog.records] == [True]


async def test_array_round_trip(store: ArrayStore) -> None:
    sent = np.arange(12, dtype=np.int16).reshape(3, 4)
    info = await put(store, sent)
    assert (info.shape, info.dtype, info.bytes, info.state, info.owner) == ([3, 4], "int16", 24, "ready", "me")
    back = conversion.view(str((await store.info(info.id)).path), info.id)
    assert (back == sent).all()
    assert [each.id for each in store.page().arrays] == [info.id]
    await store.remove(info.id)
    with pytest.raises(ArrayNotFound, match="Unknown array"):
        await store.info(info.id)
    assert (back == sent).all(), "a process that maps it keeps it"


async def test_spool_folder_is_private_and_removed_on_close(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        await put(store, np.zeros(10))
        roots = [place.root for place in store._spool.places]
        assert [place.in_memory for place in store._spool.places] == ([True, False] if len(roots) == 2 else [False])
        for root in roots:
            for path in (root, *root.rglob("*")):
                assert not path.stat().st_mode & 0o077, path
    assert not any(root.exists() for root in roots)


@pytest.mark.parametrize("left", ["absent", "file", "others", "link"])
async def test_untrusted_memory_folder_falls_back_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    memory = tmp_path / "shm"
    monkeypatch.setattr(spool, "MEMORY", memory)
    monkeypatch.setattr(spool, "in_memory", lambda path: memory in (path, *path.parents))
    if left != "absent":
        memory.mkdir()
        probe = spool.Spool(Settings(data_dir=tmp_path / "data"), "rt_1")
        (own,) = [root for root in probe._roots() if root.parent == memory]
        if left == "file":
            own.touch()
        elif left == "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            own.symlink_to(tmp_path / "elsewhere")
        elif os.geteuid() != 0:
            pytest.skip("only root can make another user's folder")
        else:
            own.mkdir(mode=0o700)
            os.chown(own, 12345, 12345)

    async with store_in(tmp_path / "data") as store:
        info = await put(store, np.zeros(10))
        assert Path(str(info.path)).is_relative_to(tmp_path / "data" / "arrays")
        assert store.problem is None
    assert not list((tmp_path / "elsewhere").glob("*"))


async def test_array_too_large_for_memory_folder_is_stored_on_disk(
    tmp_path: Path, small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MEMORY", small_tmpfs)
    async with store_in(tmp_path) as store:
        small, large = await put(store, np.ones(MB, np.uint8)), await put(store, np.full(20 * MB, 7, np.uint8))
        assert str(small.path).startswith(str(small_tmpfs))
        assert str(large.path).startswith(str(tmp_path / "arrays"))
        assert (conversion.view(str(large.path), large.id) == 7).all()


async def test_full_spool_rejects_with_sizes_until_space_is_freed(tmp_path: Path, small_tmpfs: Path) -> None:
    async with store_in(tmp_path, spool_dir=str(small_tmpfs)) as store:
        first = await put(store, np.ones(5 * MB, np.uint8))
        with pytest.raises(StorageUnavailable, match=r"(?i)no room for an array of 5\.02 MB: .* has 3\.\d\d MB left.*spool_dir"):
            await store.allocate(Layout((5 * MB,), "uint8"))
        assert len(store.page().arrays) == 1
        await store.remove(first.id)
        assert (await put(store, np.full(5 * MB, 3, np.uint8))).state == "ready"


async def test_quota_error_names_sizes(tmp_path: Path) -> None:
    async with store_in(tmp_path, array_bytes=3 * MB) as store:
        with pytest.raises(InvalidRequest, match=r"4\.02 MB .* 3\.00 MB .*array_bytes"):
            await store.allocate(Layout((MB,), "float32"))
        await put(store, np.zeros(2 * MB, np.uint8))
        with pytest.raises(StorageUnavailable, match=r"2\.02 MB: .* 2\.02 MB of 3\.00 MB \(array_bytes\)"):
            await store.allocate(Layout((2 * MB,), "uint8"))


async def test_only_fetched_results_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "QUIET_SECONDS", 0.0)

    async with store_in(tmp_path, array_bytes=4 * MB) as store:
        kept = await result(store, "task_a", np.zeros(MB, np.uint8))
        mapped = await result(store, "task_b", np.ones(MB, np.uint8))
        view = conversion.view(str((await store.info(mapped)).path), mapped)
        fetched = await result(store, "task_c", np.zeros(MB, np.uint8))
        await store.info(fetched)
        await put(store, np.zeros(MB, np.uint8))
        assert {each.id for each in store.page().arrays} >= {kept, mapped}
        with pytest.raises(ArrayNotFound):
            await store.info(fetched)
        with pytest.raises(StorageUnavailable):
            await store.allocate(SMALL)
        assert view.all()
        del view
        gc.collect()
        assert await store.allocate(SMALL), "its last view was released"


async def test_sweep_removes_array_of_killed_writer_only(store: ArrayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "WRITER_SECONDS", -1.0)
    program = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_SH); os.pwrite(fd, b'half', 20000); "
        "print('half', flush=True); sys.stdin.read()"
    )

    info = await store.allocate(SMALL)
    with pytest.raises(InvalidRequest, match="not complete"):
        store.lease([info.id], "task_a")
    writer = subprocess.Popen([sys.executable, "-c", program, str(info.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    await store.sweep()
    assert (await store.info(info.id)).state == "writing"
    writer.kill()
    writer.communicate()
    await store.sweep()
    with pytest.raises(ArrayNotFound):
        await store.ready(info.id)
    assert not Path(str(info.path)).exists()


@pytest.mark.parametrize("harm", ["removed", "truncated", "rewritten"])
async def test_file_with_changed_header_never_becomes_ready(store: ArrayStore, harm: str) -> None:
    info = await store.allocate(SMALL)
    path = Path(str(info.path))
    if harm == "removed":
        path.unlink()
    elif harm == "truncated":
        os.truncate(path, 100_000)
    else:
        path.write_bytes(Layout((1,), "int8").header().ljust(info.size))
    with pytest.raises(ArrayNotFound, match=r"no longer exists|damaged"):
        await store.ready(info.id)
    assert store.used_bytes == 0


async def test_leased_inputs_survive_deletion_and_expiry(tmp_path: Path) -> None:
    async with store_in(tmp_path, array_seconds=0.05) as store:
        info = await put(store, np.zeros(10))
        store.lease([info.id], "task_a")
        await asyncio.sleep(0.1)
        await store.sweep()
        await store.remove(info.id)
        assert Path(store.path_of(info.id)).exists()
        store.release("task_a", [info.id])
        while store._dropping:
            await asyncio.sleep(0.01)
        assert store.used_bytes == 0


async def test_names_are_unique_and_cannot_escape_the_folder(store: ArrayStore) -> None:
    await put(store, np.zeros(10), "weights")
    with pytest.raises(ArrayConflict, match="delete it first"):
        await store.allocate(SMALL, name="weights")
    with pytest.raises(ArrayConflict, match="already complete"):
        await store.ready("weights")
    store.lease(["weights"], "task_a")
    await store.remove("weights")
    with pytest.raises(ArrayConflict, match="deleted but is still in use"):
        await store.allocate(SMALL, name="weights")
    for name in ("../x", "a/b", "", ".hidden", "arr_x", "a" * 101, "ü"):
        with pytest.raises(InvalidRequest, match="name"):
            await store.allocate(SMALL, name=name)
        with pytest.raises(ArrayNotFound):
            await store.info(name)
        assert store.known(name) is None


async def test_name_deleted_during_allocation_becomes_free(store: ArrayStore) -> None:
    for _ in range(20):
        first = asyncio.ensure_future(store.allocate(SMALL, name="weights"))
        await asyncio.sleep(0)
        if "weights" in store._records:
            await store.remove("weights")
        again = asyncio.ensure_future(store.allocate(SMALL, name="weights"))
        outcomes = await asyncio.gather(first, again, return_exceptions=True)
        assert {type(each) for each in outcomes} <= {ArrayInfo, ArrayNotFound, ArrayConflict}, outcomes
        info = [each for each in outcomes if isinstance(each, ArrayInfo)]
        assert len(info) <= 1
        assert [each.id for each in store.page().arrays] == [each.id for each in info]
        for each in info:
            assert Path(str(each.path)).exists()
            await store.remove("weights")
    assert store.used_bytes == 0


async def test_array_of_another_runtime_is_read_only(tmp_path: Path) -> None:
    async with store_in(tmp_path) as one, store_in(tmp_path, "rt_2") as other:
        await put(one, np.arange(10), "weights")
        assert other.known("weights") is not None
        with pytest.raises(ArrayConflict, match="belongs to another runtime"):
            await other.remove("weights")
        assert (await other.info("weights")).shape == [10]
        await one.remove("weights")
        with pytest.raises(ArrayNotFound):
            await other.remove("weights")


async def test_room_for_results_is_current_where_it_is_scarce(tmp_path: Path) -> None:
    async with store_in(tmp_path, array_bytes=1_000_000) as store:
        await put(store, np.zeros(100_000), "weights")
        most = store.places()[0][1]
        assert most < 250_000
        await put(store, np.zeros(5_000), "more")
        assert store.places()[0][1] < most - 40_000, "arrays of other tasks count at once"
        await store.remove("weights")
        assert store.places()[0][1] > 800_000, "and so does their room"


async def test_many_arrays_are_not_added_up_for_every_task(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        await put(store, np.zeros(10))
        store.places()
        counted: list[None] = []
        for record in store._records.values():
            record.leases = Counted(counted)
        for _ in range(100):
            store.places()
        assert len(counted) <= 10


class Counted(set[str]):
    """Set that counts how often it is tested."""

    def __init__(self, counted: list[None]) -> None:
        super().__init__()
        self.counted = counted

    def __bool__(self) -> bool:
        self.counted.append(None)
        return False


async def test_discard_removes_files_of_failed_attempt_only(store: ArrayStore) -> None:
    folder = Path(store.places()[0][0])
    for attempt in (1, 10):
        conversion.store(np.zeros(10), folder / f"{result_name('task_a', attempt)}.0.part")
    await store.discard(result_name("task_a", 1))
    assert [path.name for path in folder.iterdir()] == ["arr_a.10.0.part"]


async def test_results_are_deleted_with_their_task(store: ArrayStore) -> None:
    one, other = await result(store, "task_a", np.zeros(10)), await result(store, "task_b", np.zeros(10))
    assert (task_of(one), task_of(other)) == ("task_a", "task_b")
    await store.forget("task_a")
    assert [each.task_id for each in store.page().arrays] == ["task_b"]

    async def exists(task_id: str) -> bool:
        return False

    await store.sweep(exists)
    assert not store.page().arrays


async def test_next_server_takes_over_arrays_of_stopped_one(tmp_path: Path) -> None:
    async with store_in(tmp_path, "rt_1") as store:
        unfetched, fetched = await result(store, "task_a", np.ones(10)), await result(store, "task_b", np.ones(10))
        needed, loose = await put(store, np.full(10, 2.0)), await put(store, np.zeros(10))
        await store.info(fetched)
        store.lease([needed.id], "task_c")
    async with store_in(tmp_path, "rt_2") as store:
        assert {each.id for each in store.page().arrays} == {unfetched, needed.id} | (
            set() if store._spool.places[0].in_memory else {fetched}
        )
        assert conversion.view(store.path_of(needed.id), "a").tolist() == [2.0] * 10
        assert store.known(loose.id) is None
        await store.remove(needed.id)
        await store.remove(unfetched)


async def test_arrays_of_killed_server_are_taken_over_and_of_killed_kernel_removed(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys
from pathlib import Path
from openruntime_jupyter.runtime.arrays.store import ArrayStore
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.arrays.array_layout import Layout

async def main():
    store = ArrayStore(Settings(data_dir=Path(sys.argv[1]), embedded=sys.argv[2] == "embedded"), "rt_" + sys.argv[2], Machine())
    store.open()
    info = await store.allocate(Layout((10,), "int8"))
    await store.ready(info.id)
    await store.allocate(Layout((10,), "int8"))
    freed = await store.allocate(Layout((2_000_000,), "int8"))
    await store.remove(freed.id)
    assert store.page().warm_bytes
    print(info.id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    processes = {}
    for kind in ("server", "embedded"):
        processes[kind] = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
    ids = {}
    for kind, process in processes.items():
        assert process.stdout is not None
        ids[kind] = process.stdout.readline().strip()

    async with store_in(tmp_path, "rt_2") as store:
        assert not store.page().arrays, "they are alive"
        assert (await store.info(ids["server"])).shape == [10], "an array of another runtime can be read"
        assert store.known(ids["embedded"]) is not None
    for process in processes.values():
        process.kill()
        process.communicate()
    async with store_in(tmp_path, "rt_3") as store:
        assert [each.id for each in store.page().arrays] == [ids["server"]]
        files = [path.name for place in store._spool.places for path in place.root.rglob("*") if path.is_file()]
        assert sorted(name for name in files if not name.endswith(".lock") and name != "home") == [f"{ids['server']}.safetensors"]


@pytest.mark.parametrize("left", ["of a notebook", "without a home", "too old", "kept", "living"])
async def test_memory_of_killed_runtimes_in_other_data_folders_is_freed(
    tmp_path: Path, small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setattr(spool, "MEMORY", small_tmpfs)
    monkeypatch.setattr(spool, "YOUNG_SECONDS", -1.0)
    other = ArrayStore(Settings(data_dir=tmp_path / "other", embedded=left == "of a notebook"), "rt_1", Machine(list))
    other.open()
    root = other._spool.places[0].root

    path = Path(str((await put(other, np.zeros(10))).path))
    if left != "living":
        for place in other._spool.places:
            place.lock.release()
    if left == "without a home":
        shutil.rmtree(tmp_path / "other")
    elif left == "too old":
        os.utime(path, (1, 1))
    async with store_in(tmp_path / "data"):
        assert path.exists() == (left in ("kept", "living"))
        assert root.exists() == path.exists()
    other.close()


def shared_memory() -> int:
    """Bytes of memory that files take, which Linux does not count as available."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:")]
    return int(line.split()[1]) * 1024


async def test_array_in_memory_reserves_its_memory_at_allocation(tmp_path: Path) -> None:
    async with store_in(tmp_path, warm_bytes=0) as store:
        if not store._spool.places[0].in_memory:
            pytest.skip("no folder in memory here")
        size = 200 * MB
        taken = []
        for _ in range(3):  # other processes have such files too
            before = shared_memory()
            info = await store.allocate(Layout((size,), "uint8"))
            taken.append(shared_memory() - before)
            await store.remove(info.id)
        assert statistics.median(taken) > size / 2


class Ages:
    """Manual clock for the age of arrays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(sys.modules[ArrayRecord.__module__], "now", lambda: self.seconds)


async def test_unused_array_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async with store_in(tmp_path, array_seconds=60.0) as store:
        old, used = await put(store, np.zeros(10)), await put(store, np.zeros(10))
        ages.seconds += 50
        await store.info(used.id)
        ages.seconds += 20
        new = await put(store, np.zeros(10))
        await store.sweep()
        assert {each.id for each in store.page().arrays} == {used.id, new.id}
        assert old.expires_at is not None


@pytest.mark.parametrize("days", [-365, 365])
async def test_changed_wall_clock_does_not_affect_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    ages, true = Ages(monkeypatch), time.time

    async with store_in(tmp_path, array_bytes=2 * MB, array_seconds=60.0) as store:
        fetched = await result(store, "task_a", np.zeros(MB, np.uint8))
        await store.info(fetched)
        half = await store.allocate(Layout((10,), "int8"))
        monkeypatch.setattr(time, "time", lambda: true() + days * 86_400)
        await store.sweep()
        assert {each.id for each in store.page().arrays} == {fetched, half.id}
        ages.seconds += 1
        sent = await put(store, np.zeros(MB, np.uint8))
        assert store.known(fetched) is None, "it made room"
        ages.seconds += 61
        await store.sweep()
        assert not store.page().arrays, (sent.id, half.id)


async def test_idle_time_survives_server_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = Ages(monkeypatch)

    async with store_in(tmp_path, "rt_1", array_seconds=60.0) as store:
        old, young = await result(store, "task_a", np.ones(10)), await result(store, "task_b", np.ones(10))
        ages.seconds += 50
        await store.adopt("me", [])
        store._records[young].touch()
    async with store_in(tmp_path, "rt_2", array_seconds=60.0) as store:
        ages.seconds += 20
        await store.sweep()
        assert [each.id for each in store.page().arrays] == [young], old


async def test_concurrent_ready_calls_keep_the_array(store: ArrayStore) -> None:
    info = await store.allocate(SMALL)
    first, second = await asyncio.gather(store.ready(info.id), store.ready(info.id), return_exceptions=True)
    assert isinstance(first, ArrayInfo)
    assert isinstance(second, ArrayConflict)
    assert conversion.view(store.path_of(info.id), info.id).shape == SMALL.shape


@pytest.mark.parametrize("first", ["ready", "remove"])
async def test_array_deleted_during_finish_leaves_no_file(tmp_path: Path, first: str) -> None:
    async with store_in(tmp_path, warm_bytes=0) as store:
        for _ in range(20):
            info = await store.allocate(SMALL, name="weights")
            works = {"ready": store.ready(info.id), "remove": store.remove(info.id)}
            begun = asyncio.ensure_future(works.pop(first))
            (other,) = works.values()
            outcomes = dict(zip((first, "other"), await asyncio.gather(begun, other, return_exceptions=True), strict=True))
            assert any(isinstance(each, ArrayNotFound) for each in outcomes.values())
            assert store.used_bytes == 0
            assert not [path for place in store._spool.places for path in place.folder.iterdir() if path.is_file()]


async def test_name_of_array_being_uploaded_is_reserved_and_cannot_be_marked_ready(store: ArrayStore) -> None:
    making = asyncio.ensure_future(store.place_for("weights", SMALL, "me"))
    await asyncio.sleep(0)
    with pytest.raises(ArrayConflict, match="being sent"):
        await store.ready("weights")
    with pytest.raises(ArrayConflict):
        await store.place_for("weights", Layout((1,), "int8"), "me")
    await making
    with store.writing("weights"):
        with pytest.raises(ArrayConflict, match="being sent"):
            await store.ready("weights")
        assert (await store.ready("weights", sent=True)).state == "ready"


async def test_task_cannot_lease_array_being_deleted(store: ArrayStore) -> None:
    info = await put(store, np.zeros(10))
    going = asyncio.ensure_future(store.remove(info.id))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match="it was deleted"):
        store.lease([info.id], "task_a")
    await going
