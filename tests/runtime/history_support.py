"""Helpers for history tests: tasks, an open history, and the processes of `history_child.py`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from openruntime_jupyter.runtime.ids import make_id
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.store import History
from openruntime_jupyter.runtime.storage.writer import Job
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Task, TaskState

ROOT = Path(__file__).parents[2]


def make_task(state: TaskState = TaskState.PENDING, *, seconds: float | None = None, **fields: Any) -> Task:
    """Return an asynchronous task as a runtime describes it; `seconds` is the time of its submission."""
    moment = iso(time.time() if seconds is None else seconds)
    task = Task(
        **{
            "task_id": make_id("task"),
            "operation": "compute",
            "status": state,
            "timestamp": moment,
            "submitted_at": moment,
            "wait": False,
            "parameters": {"expression": "a + b"},
            **fields,
        }
    )
    return moved(task, state)


def moved(task: Task, state: TaskState, **fields: Any) -> Task:
    """Return the task in another state, with the matching times."""
    changed = task.model_copy(update={"status": state, **fields})
    if state.terminal and changed.finished_at is None:
        changed.finished_at = changed.timestamp
    if state is TaskState.RUNNING and changed.attempt == 0:
        changed.attempt = 1
    return changed


def as_it_is(task: Task) -> Callable[[], Task]:
    """Return a `describe` function that always returns this task."""
    return lambda: task


@contextlib.asynccontextmanager
async def opened(folder: Path, runtime: str = "rt_1", **settings: Any) -> AsyncIterator[History]:
    """Open a history and close it at the end; `.taken` holds the tasks that it took over."""
    history = History(Settings(data_dir=folder, **settings), runtime)
    history.taken = history.open()  # type: ignore[attr-defined]
    try:
        yield history
    finally:
        await history.close(10.0)


async def known(history: History, task_id: str) -> Task:
    """Return a task that the history must know."""
    task = await history.get(task_id)
    assert task is not None
    return task


async def execute(history: History, query: str) -> None:
    """Execute a statement in the writer's thread."""
    await history.change(lambda connection: connection.execute(query).fetchall())


def fill_disk(history: History, full: bool = True) -> None:
    """Make the disk look full for the writer, or no longer, after the jobs that it already has."""
    query = f"PRAGMA max_page_count = {1 if full else 2**32 - 2}"
    history._writer.put([Job(lambda connection: connection.execute(query).fetchall(), lambda result, error: None)])


def rows(folder: Path, query: str = "SELECT id, state FROM tasks") -> list[tuple[Any, ...]]:
    """Return the rows of a query, read by a separate SQLite connection."""
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite3")) as connection:
        return connection.execute(query).fetchall()


def states(folder: Path) -> dict[str, str]:
    """Return the state of every task in the file."""
    return dict(rows(folder))


class Child:
    """Process of `history_child.py` that reads and writes lines."""

    def __init__(self, command: str, *arguments: object) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("history_child.py")), command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with code {self.process.wait(10)}"
        return line.rstrip("\n")

    def rest(self) -> list[str]:
        """Return all lines until its end; the last one may be incomplete."""
        assert self.process.stdout is not None
        return self.process.stdout.read().split("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it and close the pipes."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def child(command: str, *arguments: object) -> Iterator[Child]:
    """Start a child process and kill it at the end."""
    process = Child(command, *arguments)
    try:
        yield process
    finally:
        process.end()
