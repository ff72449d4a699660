"""Locks between real processes: who lives, whose turn it is, and that a death frees what it held."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.locks import DeviceSlotLock, LockFile, RuntimeLock
from tests.runtime.history_support import child, until
from tests.support import wait_until

HOLDER = {"runtime": "rt_1", "label": "http://127.0.0.1:8888/", "pid": 1, "task_id": "task_1", "name": "mine"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_runtime_lives_until_its_process_is_killed(tmp_path: Path) -> None:
    with child("lives", tmp_path, "rt_9") as process:
        assert process.hear() == "alive"
        assert locks.lives(tmp_path, "rt_9")
        assert json.loads((tmp_path / "rt_9.lock").read_bytes()) == {"runtime": "rt_9", "pid": process.process.pid}
        process.kill()
        wait_until(lambda: not locks.lives(tmp_path, "rt_9"), what="the end of the dead runtime's lock")
        assert (tmp_path / "rt_9.lock").exists()


def test_a_file_that_names_a_living_process_does_not_make_a_runtime_live(tmp_path: Path) -> None:
    (tmp_path / "rt_9.lock").write_text(f'{{"runtime": "rt_9", "pid": {os.getpid()}}}')
    assert not locks.lives(tmp_path, "rt_9")


def test_a_runtime_without_a_file_is_dead(tmp_path: Path) -> None:
    assert not locks.lives(tmp_path, "rt_9")
    assert not locks.lives(tmp_path / "missing", "rt_9")


def test_looking_at_a_dead_runtime_never_makes_another_looker_believe_that_it_lives(tmp_path: Path) -> None:
    (tmp_path / "rt_9.lock").touch()
    looker = os.open(tmp_path / "rt_9.lock", os.O_RDONLY)
    try:
        fcntl.flock(looker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not locks.lives(tmp_path, "rt_9")
    finally:
        os.close(looker)


def test_the_dead_are_buried_and_the_living_are_not(tmp_path: Path) -> None:
    (tmp_path / "rt_dead.lock").touch()
    alive = RuntimeLock(tmp_path, "rt_alive", {})
    alive.acquire()
    locks.bury_the_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rt_alive.lock"]
    assert locks.lives(tmp_path, "rt_alive")
    alive.release()
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_buried_before_it_has_locked_its_file_makes_another(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "rt_1.lock")
    lock._open()
    locks.bury_the_dead(tmp_path)
    assert lock.try_lock()
    assert locks.lives(tmp_path, "rt_1")
    lock.close()


def test_a_fork_does_not_keep_a_dead_runtime_alive(tmp_path: Path) -> None:
    with child("forks", tmp_path, "rt_9") as process:
        grandchild = int(process.hear())
        try:
            assert locks.lives(tmp_path, "rt_9")
            process.kill()
            os.kill(grandchild, 0)
            wait_until(lambda: not locks.lives(tmp_path, "rt_9"), what="the end of the lock with its holder")
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_lock_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
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
    lock.close()
    other.close()


def test_in_a_folder_that_is_shared_other_users_can_take_the_lock_and_do_not_read_what_a_task_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    lock = DeviceSlotLock(folder, "device_0", 0)
    assert lock.try_acquire(HOLDER)
    assert mode(folder) == 0o1777
    assert {mode(path) for path in folder.iterdir()} == {0o666}
    told = DeviceSlotLock(folder, "device_0", 0).holder()
    assert told == {key: value for key, value in HOLDER.items() if key != "name"}
    lock.close()


def test_a_slot_is_held_by_one_and_names_its_holder_to_the_others(tmp_path: Path) -> None:
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
    for lock in (first, second, elsewhere):
        lock.close()


def test_the_death_of_its_holder_frees_a_slot(tmp_path: Path) -> None:
    async def scenario() -> None:
        lock = DeviceSlotLock(tmp_path, "device_0", 0)
        with child("holds", tmp_path) as process:
            assert process.hear() == "held"
            waiting = asyncio.create_task(lock.acquire(HOLDER))
            holder = await until(lock.holder)
            assert (holder["runtime"], holder["name"], holder["pid"]) == ("rt_child", "training", process.process.pid)
            assert not waiting.done()
            process.kill()
            await asyncio.wait_for(waiting, 5)
            assert lock.holder() == HOLDER
            lock.close()

    asyncio.run(scenario())


def test_a_full_disk_does_not_keep_anybody_from_a_slot(tmp_path: Path) -> None:
    with child("holds", tmp_path, 0) as process:
        assert process.hear() == "held"
        lock = DeviceSlotLock(tmp_path, "device_0", 0)
        assert not lock.try_acquire(HOLDER)
        assert lock.holder() is None, "held, but nobody knows by whom"
        lock.close()


def test_what_the_holder_says_can_change_while_it_holds(tmp_path: Path) -> None:
    first, second = DeviceSlotLock(tmp_path, "device_0", 0), DeviceSlotLock(tmp_path, "device_0", 0)
    first.retell(HOLDER)
    assert second.holder() is None
    assert first.try_acquire(HOLDER)
    first.retell({**HOLDER, "task_id": "task_2"})
    assert first.holder() == second.holder() == {**HOLDER, "task_id": "task_2"}
    first.close()
    second.close()


def test_a_dead_holder_is_not_named(tmp_path: Path) -> None:
    with child("holds", tmp_path) as process:
        assert process.hear() == "held"
        process.kill()
    assert DeviceSlotLock(tmp_path, "device_0", 0).holder() is None


def test_a_wait_that_is_cancelled_holds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second, third = (DeviceSlotLock(tmp_path, "device_0", 0) for _ in range(3))
        assert first.try_acquire(HOLDER)
        waiting = asyncio.create_task(second.acquire({"runtime": "rt_2"}))
        # It has the turnstile by now, so a third one can't even try.
        await until(lambda: second._turnstile.held)
        first.release()
        assert not third.try_acquire({"runtime": "rt_3"})
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert third.try_acquire({"runtime": "rt_3"})
        for lock in (first, second, third):
            lock.close()

    asyncio.run(scenario())


def test_a_busy_runtime_does_not_starve_one_that_waits(tmp_path: Path) -> None:
    with child("slot", tmp_path, "a") as first, child("slot", tmp_path, "b") as second:
        for process in (first, second):
            assert process.hear() == "ready"
        for process in (first, second):
            process.tell("go")
        said = [line.split() for process in (first, second) for line in process.rest() if line]
    turns = sorted((float(start), float(end), name) for name, start, end in said)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(turns)), "two held the slot at once"
    names = [name for _, _, name in turns]
    both = names[names.index("b" if names[0] == "a" else "a") :]
    handed_over = sum(earlier != later for earlier, later in itertools.pairwise(both))
    assert len(both) > 20
    # One that waits looks every 50 ms at least, which is five of the other's turns.
    assert handed_over > len(both) / 6, f"handed over {handed_over} times in {len(both)} turns: {both}"


def test_a_lock_file_that_was_removed_is_made_anew_and_still_excludes(tmp_path: Path) -> None:
    first, second = DeviceSlotLock(tmp_path, "device_0", 0), DeviceSlotLock(tmp_path, "device_0", 0)
    assert first.try_acquire(HOLDER)
    first.release()
    for path in list(tmp_path.iterdir()):
        path.unlink()
    assert second.try_acquire({"runtime": "rt_2"})
    assert not first.try_acquire(HOLDER)
    second.release()
    assert first.try_acquire(HOLDER)
    first.close()
    second.close()


def test_workers_do_not_inherit_a_lock(tmp_path: Path) -> None:
    lock = DeviceSlotLock(tmp_path, "device_0", 0)
    assert lock.try_acquire(HOLDER)
    assert not os.get_inheritable(lock._slot._descriptor)
    assert not os.get_inheritable(lock._turnstile._descriptor)
    lock.close()


def test_a_lock_folder_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock = DeviceSlotLock(tmp_path / "file", "device_0", 0)
    with pytest.raises(StorageUnavailable, match="device_lock_dir"):
        lock.try_acquire(HOLDER)
    assert lock.holder() is None


def test_a_link_in_a_shared_folder_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "device_0.0").symlink_to(victim)
    with pytest.raises(StorageUnavailable):
        DeviceSlotLock(folder, "device_0", 0).try_acquire(HOLDER)
    assert victim.read_text() == "precious"
