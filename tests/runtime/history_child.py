"""What the tests of the history and the locks run as processes of their own. Each command speaks by lines."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sqlite3
import sys
import time
from pathlib import Path

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import DeviceSlotLock, RuntimeLock
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import TaskState
from tests.runtime.history_support import as_it_is, make_task, moved


def say(*words: object) -> None:
    # One write each, so that a kill never leaves a line that looks whole and is not.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def hear() -> str:
    return sys.stdin.readline().strip()


def commits(folder: str, runtime: str) -> None:
    """Takes tasks through their states for ever, 20 at once, and says each state once it is on disk."""

    async def life(history: History) -> None:
        while True:
            task = make_task(retries=1)
            await history.commit(task)
            say(task.task_id, "pending")
            task = moved(task, TaskState.RUNNING)
            await history.commit(task)
            say(task.task_id, "running")
            history.put_payload(task.task_id, "cloudpickle", task.task_id.encode())
            await history.commit(moved(task, TaskState.COMPLETED))
            say(task.task_id, "completed")

    async def main() -> None:
        history = History(Settings(data_dir=Path(folder)), runtime)
        history.open()
        await asyncio.gather(*(life(history) for _ in range(20)))

    asyncio.run(main())


def takes() -> None:
    """For each line `folder runtime`: opens the history there, says what it took, commits it as running, and closes."""

    async def one(folder: str, runtime: str) -> list[str]:
        history = History(Settings(data_dir=Path(folder)), runtime)
        taken = history.open()
        await asyncio.gather(*(history.commit(moved(task, TaskState.COMPLETED)) for task in taken))
        await history.close()
        return [task.task_id for task in taken]

    say("ready")
    while line := hear():
        say(json.dumps(asyncio.run(one(*line.split()))))


def writes(folder: str, runtime: str, number: str) -> None:
    """Commits and writes behind `number` tasks each, beside others who do the same."""

    async def main() -> None:
        history = History(Settings(data_dir=Path(folder)), runtime)
        history.open()
        for _ in range(int(number)):
            task = make_task(TaskState.COMPLETED)
            history.write_behind(task.task_id, as_it_is(task))
            await history.commit(make_task(TaskState.COMPLETED))
        await history.close()

    say("ready")
    hear()
    asyncio.run(main())
    say("done")


def locks_database(folder: str) -> None:
    """Holds the write lock of the history until it is told a line."""
    connection = sqlite3.connect(Path(folder) / "history.sqlite3", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    say("locked")
    hear()
    connection.execute("ROLLBACK")
    say("free")


def file_limit(folder: str) -> None:
    """Commits until the kernel refuses to let the files grow, then lets them, and says how it went."""

    async def main() -> None:
        history = History(Settings(data_dir=Path(folder)), "rt_limited")
        history.open()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        committed = []
        while history.problem is None:
            task = make_task(parameters={"filler": "x" * 10_000})
            try:
                await history.commit(task)
                committed.append(task.task_id)
            except StorageUnavailable as error:
                say("refused", error)
        late = make_task(TaskState.COMPLETED)
        history.write_behind(late.task_id, lambda: late)
        await asyncio.sleep(0.2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + 10
        while history.problem is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        say("problem", history.problem)
        await history.close()
        say(json.dumps([*committed, late.task_id]))

    asyncio.run(main())


def lives(folder: str, runtime: str) -> None:
    """Is a runtime until it is killed."""
    lock = RuntimeLock(Path(folder), runtime, {"runtime": runtime, "pid": os.getpid()})
    lock.acquire()
    say("alive")
    hear()


def forks(folder: str, runtime: str) -> None:
    """Is a runtime, and forks a child that outlives it, as multiprocessing does in a kernel."""
    lock = RuntimeLock(Path(folder), runtime, {})
    lock.acquire()
    grandchild = os.fork()
    if grandchild:
        say(grandchild)
    signal.pause()


def slot(folder: str, name: str) -> None:
    """Holds the slot for 10 ms again and again without a pause, and says when; ends at the end of its input."""

    async def main() -> None:
        lock = DeviceSlotLock(Path(folder), "device_0", 0)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            await lock.acquire({"runtime": name, "pid": os.getpid(), "task_id": f"task_{name}"})
            start = time.monotonic()
            await asyncio.sleep(0.01)
            say(name, start, time.monotonic())
            lock.release()

    say("ready")
    hear()
    asyncio.run(main())


def holds(folder: str, largest_file: str = "") -> None:
    """Holds the slot until it is killed; with `largest_file` (bytes) the kernel lets no file grow beyond that."""
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    lock = DeviceSlotLock(Path(folder), "device_0", 0)
    taken = lock.try_acquire({"runtime": "rt_child", "label": "a kernel", "pid": os.getpid(), "task_id": "task_1", "name": "training"})
    say("held" if taken else "refused")
    hear()


COMMANDS = {function.__name__: function for function in (commits, takes, writes, locks_database, file_limit, forks, lives, slot, holds)}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
