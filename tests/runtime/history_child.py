"""Child processes for the tests of the history and the locks. Each command communicates by lines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from openruntime_jupyter.runtime.locks import DeviceSlotLock, RuntimeLock
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.schemas.tasks import TaskState
from tests.runtime.history_support import make_task, moved


def send(*words: object) -> None:
    # One write per line, so that a kill never leaves an incomplete line that looks complete.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def receive() -> str:
    return sys.stdin.readline().strip()


def commits(folder: str, runtime: str) -> None:
    """Run tasks through their states until killed, 20 at a time, and print each state once it is on disk."""

    async def life(history: History) -> None:
        while True:
            task = make_task(retries=1)
            await history.commit(task)
            send(task.task_id, "pending")
            task = moved(task, TaskState.RUNNING)
            await history.commit(task)
            send(task.task_id, "running")
            history.put_payload(task.task_id, "cloudpickle", task.task_id.encode())
            await history.commit(moved(task, TaskState.COMPLETED))
            send(task.task_id, "completed")

    async def main() -> None:
        history = History(Settings(data_dir=Path(folder)), runtime)
        history.open()
        await asyncio.gather(*(life(history) for _ in range(20)))

    asyncio.run(main())


def takes() -> None:
    """For each line `folder runtime`, open the history there, print the tasks taken over, complete them, and close."""

    async def one(folder: str, runtime: str) -> list[str]:
        history = History(Settings(data_dir=Path(folder)), runtime)
        taken = history.open()
        await asyncio.gather(*(history.commit(moved(task, TaskState.COMPLETED)) for task in taken))
        await history.close()
        return [task.task_id for task in taken]

    send("ready")
    while line := receive():
        send(json.dumps(asyncio.run(one(*line.split()))))


def locks_database(folder: str) -> None:
    """Hold the write lock of the history until a line is received."""
    connection = sqlite3.connect(Path(folder) / "history.sqlite3", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    send("locked")
    receive()
    connection.execute("ROLLBACK")
    send("free")


def forks(folder: str, runtime: str) -> None:
    """Hold a runtime lock and fork a child that outlives this process, as multiprocessing does in a kernel."""
    lock = RuntimeLock(Path(folder), runtime, {"runtime": runtime, "pid": os.getpid()})
    lock.acquire()
    grandchild = os.fork()
    if grandchild:
        send(grandchild)
    signal.pause()


def slot(folder: str, name: str) -> None:
    """Acquire the slot for 10 ms repeatedly without a pause for 1 s, and print the times."""

    async def main() -> None:
        lock = DeviceSlotLock(Path(folder), "device_0", 0)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            await lock.acquire({"runtime": name, "pid": os.getpid(), "task_id": f"task_{name}"})
            start = time.monotonic()
            await asyncio.sleep(0.01)
            send(name, start, time.monotonic())
            lock.release()

    send("ready")
    receive()
    asyncio.run(main())


def holds(folder: str) -> None:
    """Hold the slot until killed."""
    lock = DeviceSlotLock(Path(folder), "device_0", 0)
    taken = lock.try_acquire({"runtime": "rt_child", "label": "a kernel", "pid": os.getpid(), "task_id": "task_1", "name": "training"})
    send("held" if taken else "refused")
    receive()


COMMANDS = {function.__name__: function for function in (commits, takes, locks_database, forks, slot, holds)}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
