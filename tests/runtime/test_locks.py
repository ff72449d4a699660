"""Locks between real processes: runtime locks, device slots, and their release when a process dies."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.locks import DeviceSlotLock, LockFile, RuntimeLock
from tests.runtime.history_support import child
from tests.runtimes import until
from tests.support import wait_until

HOLDER = {"runtime": "rt_1", "label": "http://127.0.0.1:8888/", "pid": 1, "task_id": "task_1", "name": "mine"}


@pytest.fixture(autouse=True)
def closed_at_end() -> Iterator[None]:
    """Close every lock that a test created."""
    yield
    for lock in tuple(locks._open_locks):
        lock.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_concurrent_checks_do_not_report_dead_runtime_alive(tmp_path: Path) -> None:
    assert not locks.is_alive(tmp_path, "rt_9"), "it has no file"
    (tmp_path / "rt_9.lock").touch()
    looker = os.open(tmp_path / "rt_9.lock", os.O_RDONLY)
    try:
        fcntl.flock(looker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not locks.is_alive(tmp_path, "rt_9")
    finally:
        os.close(looker)


def test_only_lock_files_of_dead_runtimes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "rt_dead.lock").touch()
    alive = RuntimeLock(tmp_path, "rt_alive", {})
    alive.acquire()
    locks.remove_dead_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rt_alive.lock"]
    assert locks.is_alive(tmp_path, "rt_alive")
    alive.release()
    assert not list(tmp_path.iterdir())


def test_runtime_creates_lock_file_again_if_removed_before_locking(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "rt_1.lock")
    lock._open()
    locks.remove_dead_locks(tmp_path)
    assert lock.try_lock()
    assert locks.is_alive(tmp_path, "rt_1")
    lock.close()


def test_runtime_is_alive_until_its_process_is_killed_and_a_fork_does_not_count(tmp_path: Path) -> None:
    with child("forks", tmp_path, "rt_9") as process:
        grandchild = int(process.receive())
        try:
            assert locks.is_alive(tmp_path, "rt_9")
            assert json.loads((tmp_path / "rt_9.lock").read_bytes()) == {"runtime": "rt_9", "pid": process.process.pid}
            process.kill()
            os.kill(grandchild, 0)
            wait_until(lambda: not locks.is_alive(tmp_path, "rt_9"), what="the end of the lock with its holder")
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_lock_files_are_private_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RuntimeLock(tmp_path / "runtimes", "rt_1", {}).acquire()
        lock = DeviceSlotLock(tmp_path / "locks", "device_0", 0)
        assert lock.try_acquire(HOLDER)
        os.umask(0o777)
        other = DeviceSlotLock(tmp_path / "closed", "device_0", 0)
        assert other.try_acquire(HOLDER)
    finally:
        os.umask(before)
    for folder in ("runtimes", "locks", "closed"):
        assert mode(tmp_path / folder) == 0o700
        assert {mode(path) for path in (tmp_path / folder).iterdir()} == {0o600}


def test_shared_lock_folder_hides_task_names_from_other_users(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    lock = DeviceSlotLock(folder, "device_0", 0)
    assert lock.try_acquire(HOLDER)
    assert mode(folder) == 0o1777
    assert {mode(path) for path in folder.iterdir()} == {0o666}
    holder = DeviceSlotLock(folder, "device_0", 0).holder()
    assert holder == {key: value for key, value in HOLDER.items() if key != "name"}


def test_slot_has_one_holder_visible_to_others(tmp_path: Path) -> None:
    first, second = DeviceSlotLock(tmp_path, "device_0", 0), DeviceSlotLock(tmp_path, "device_0", 0)
    elsewhere = DeviceSlotLock(tmp_path, "device_0", 1)
    assert first.holder() is None
    assert first.try_acquire(HOLDER)
    assert not second.try_acquire({"runtime": "rt_2"})
    assert second.holder() == first.holder() == HOLDER
    assert elsewhere.try_acquire({"runtime": "rt_2"})
    first.release()
    first.release()
    assert second.holder() is None
    assert second.try_acquire({"runtime": "rt_2", "name": "x" * 100_000 + "\ud800"})
    assert first.holder() == {"runtime": "rt_2", "name": "x" * 100}
    assert not first.try_acquire(HOLDER)


async def test_slot_is_released_when_holder_dies(tmp_path: Path) -> None:
    lock = DeviceSlotLock(tmp_path, "device_0", 0)
    with child("holds", tmp_path) as process:
        assert process.receive() == "held"
        waiting = asyncio.create_task(lock.acquire(HOLDER))
        holder = await until(lock.holder)
        assert (holder["runtime"], holder["name"], holder["pid"]) == ("rt_child", "training", process.process.pid)
        assert not waiting.done()
        process.kill()
        await asyncio.wait_for(waiting, 5)
        assert lock.holder() == HOLDER


def test_slot_can_be_acquired_on_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        assert DeviceSlotLock(tmp_path, "device_0", 0).try_acquire(HOLDER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lock = DeviceSlotLock(tmp_path, "device_0", 0)
    assert not lock.try_acquire(HOLDER)
    assert lock.holder() is None, "held by an unknown holder"


def test_holder_can_be_updated(tmp_path: Path) -> None:
    first, second = DeviceSlotLock(tmp_path, "device_0", 0), DeviceSlotLock(tmp_path, "device_0", 0)
    first.update_holder(HOLDER)
    assert second.holder() is None
    assert first.try_acquire(HOLDER)
    first.update_holder({**HOLDER, "task_id": "task_2"})
    assert first.holder() == second.holder() == {**HOLDER, "task_id": "task_2"}


def test_dead_holder_is_not_reported(tmp_path: Path) -> None:
    with child("holds", tmp_path) as process:
        assert process.receive() == "held"
        process.kill()
    assert DeviceSlotLock(tmp_path, "device_0", 0).holder() is None


async def test_cancelled_wait_holds_no_lock(tmp_path: Path) -> None:
    first, second, third = (DeviceSlotLock(tmp_path, "device_0", 0) for _ in range(3))
    assert first.try_acquire(HOLDER)
    waiting = asyncio.create_task(second.acquire({"runtime": "rt_2"}))
    # It holds the turnstile, so a third one cannot try.
    await until(lambda: second._turnstile.held)
    first.release()
    assert not third.try_acquire({"runtime": "rt_3"})
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert third.try_acquire({"runtime": "rt_3"})


def test_busy_runtime_does_not_starve_waiting_one(tmp_path: Path) -> None:
    with child("slot", tmp_path, "a") as first, child("slot", tmp_path, "b") as second:
        for process in (first, second):
            assert process.receive() == "ready"
        for process in (first, second):
            process.send("go")
        lines = [line.split() for process in (first, second) for line in process.rest() if line]
    turns = sorted((float(start), float(end), name) for name, start, end in lines)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(turns)), "two held the slot at once"
    names = [name for _, _, name in turns]
    both = names[names.index("b" if names[0] == "a" else "a") :]
    handed_over = sum(earlier != later for earlier, later in itertools.pairwise(both))
    assert len(both) > 10
    # A waiting runtime tries at least every 50 ms, which is five turns of the other.
    assert handed_over > len(both) / 6, f"handed over {handed_over} times in {len(both)} turns: {both}"


def test_removed_lock_file_is_created_again_and_still_excludes(tmp_path: Path) -> None:
    first, second = DeviceSlotLock(tmp_path, "device_0", 0), DeviceSlotLock(tmp_path, "device_0", 0)
    assert first.try_acquire(HOLDER)
    first.release()
    for path in list(tmp_path.iterdir()):
        path.unlink()
    assert second.try_acquire({"runtime": "rt_2"})
    assert not first.try_acquire(HOLDER)
    second.release()
    assert first.try_acquire(HOLDER)


def test_unusable_lock_folder_raises_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = DeviceSlotLock(tmp_path / "file", "device_0", 0)
    with pytest.raises(StorageUnavailable, match="device_lock_dir"):
        lock.try_acquire(HOLDER)
    assert lock.holder() is None


def test_symlink_in_shared_folder_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "device_0.0").symlink_to(victim)
    with pytest.raises(StorageUnavailable):
        DeviceSlotLock(folder, "device_0", 0).try_acquire(HOLDER)
    assert victim.read_text() == "precious"
