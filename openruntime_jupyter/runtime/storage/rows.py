"""A Task as a row, and a row as a Task. The guards that keep a row right are here, in SQL."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskState

log = logging.getLogger(__name__)

OF_THE_MOMENT = {"parameters", "runtime", "here", "position", "estimated_start", "waiting_for"}
"""Not in the document: it has a column, or is true only while its runtime says so."""

# A terminal state never changes, and a row that another runtime took over is that runtime's.
UPDATE = "UPDATE tasks SET state = ?, finished = ?, attempt = ?, document = ? WHERE id = ? AND runtime = ? AND finished IS NULL"
# What was purged stays away. OR IGNORE and a second statement cost less than an upsert.
INSERT = """
INSERT OR IGNORE INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, document, parameters)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13
WHERE NOT EXISTS (SELECT 1 FROM gone WHERE id = ?1)
"""

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def encode(parameters: dict[str, Any] | None) -> str | None:
    """Parameters as JSON: also what UTF-8 can't hold, and NaN, survive it."""
    return None if parameters is None else "{}" if not parameters else _encode(parameters)


ROW = "id, runtime, state, operation, submitted, document"
"""The columns that `task_of` reads."""


EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - both sides of the difference are UTC, and naive ones subtract faster
MICROSECOND = timedelta(microseconds=1)


def micros(timestamp: str) -> int:
    """A `Timestamp` as the history keeps it: microseconds since the epoch."""
    return (datetime.fromisoformat(timestamp.removesuffix("Z")) - EPOCH) // MICROSECOND


class Record(NamedTuple):
    """A task as it was at one moment, ready to be written; the fields are the columns of `INSERT` in their order."""

    id: str
    runtime: str
    state: str
    operation: str
    owner: str | None
    submitted: int
    finished: int | None
    durable: bool
    embedded: bool
    attempt: int
    retries: int
    document: str
    parameters: dict[str, Any] | None

    @property
    def change(self) -> tuple[Any, ...]:
        """The values of `UPDATE`."""
        return self.state, self.finished, self.attempt, self.document, self.id, self.runtime

    @property
    def row(self) -> tuple[Any, ...]:
        """The values of `INSERT`."""
        return (*self[:-1], encode(self.parameters))

    def update(self, connection: sqlite3.Connection) -> bool:
        """Change the row, if it is there and the guards allow it."""
        return bool(connection.execute(UPDATE, self.change).rowcount)

    def insert(self, connection: sqlite3.Connection) -> bool:
        """Make the row, if it is not there."""
        return bool(connection.execute(INSERT, self.row).rowcount)


def record_of(task: Task, runtime: str, embedded: bool) -> Record:
    """The row of `task`, whose parameters are encoded only if they must be written."""
    state = task.status
    return Record(
        task.task_id,
        runtime,
        state.value,
        task.operation,
        task.owner,
        micros(task.submitted_at),
        micros(task.finished_at or task.timestamp) if state.terminal else None,
        not task.wait,
        embedded,
        task.attempt,
        task.retries,
        text_of(task, OF_THE_MOMENT),
        task.parameters,
    )


def text_of(model: BaseModel, leave_out: set[str] | None = None) -> str:
    """A model as JSON text, whatever a task has put into it: what JSON or UTF-8 can't hold is replaced."""
    try:
        return model.model_dump_json(exclude=leave_out, exclude_none=True, warnings=False)
    except Exception:
        # pydantic and UTF-8 raise different ones, and a record must not be lost to either.
        content = model.model_dump(mode="python", exclude=leave_out, exclude_none=True, warnings=False)
        text = json.dumps(content, ensure_ascii=False, default=str, skipkeys=True)
        return text.encode("utf-8", "replace").decode()


def write(connection: sqlite3.Connection, record: Record, known: bool) -> bool:
    """Write a record; false where a guard kept the row as it is. `known`: the row is there, which saves encoding the parameters."""
    if known and record.update(connection):
        return True
    return record.insert(connection) or (not known and record.update(connection))


def write_or_tell(connection: sqlite3.Connection, record: Record, known: bool) -> None:
    """Write a record; raises `TaskConflict` where the row is not this runtime's to change."""
    if write(connection, record, known):
        return
    row = connection.execute("SELECT runtime, state FROM tasks WHERE id = ?", (record.id,)).fetchone()
    if row is None:
        raise TaskConflict(f"{record.id} was purged, and is not recorded again.")
    if row[0] != record.runtime:
        raise TaskConflict(f"{record.id} was taken over by the runtime {row[0]}: it must not run here.")
    if row[1] != record.state:
        raise TaskConflict(f"{record.id} is {row[1]}, and that does not change any more.")


def task_of(row: tuple[Any, ...], me: str, parameters: str | None = None) -> Task:
    """The Task of a row of `ROW`; `me` is the runtime that reads it."""
    task_id, runtime, state, operation, submitted, document = row
    try:
        task = Task.model_validate_json(document)
    except ValidationError:
        task = _task_of_another_release(document) or _unreadable(task_id, state, operation, submitted)
    task.runtime = runtime
    task.here = runtime == me
    if parameters is not None:
        task.parameters = json.loads(parameters)
    return task


def _task_of_another_release(document: str) -> Task | None:
    """A record with fields that this release does not know, without them; None if that is not what is wrong."""
    content = json.loads(document)
    try:
        return Task.model_validate(content)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            if problem["type"] != "extra_forbidden":
                return None
            *way, name = problem["loc"]
            place = content
            for step in way:
                place = place[step]
            del place[name]
    try:
        return Task.model_validate(content)
    except ValidationError:
        return None


def _unreadable(task_id: str, state: str, operation: str, submitted: int) -> Task:
    """What the columns alone tell: one bad record must not hide the page that it is on."""
    moment = iso(submitted / 1e6)
    assert moment is not None
    return Task(
        task_id=task_id,
        status=TaskState(state),
        operation=operation,
        timestamp=moment,
        submitted_at=moment,
        error="This task's record can't be read by this release: upgrade openruntime-jupyter to see the rest of it.",
    )


def take_over(connection: sqlite3.Connection, me: str, embedded: bool, lives: Callable[[str], bool], now: float) -> list[Task]:
    """Make the tasks of dead runtimes ours, or tell that they were interrupted; the ones to queue again, oldest first.

    Part of one transaction that nobody else's runs beside. An embedded runtime takes nothing, since a task that must outlive its
    server would end with the kernel; it leaves them for a server.
    """
    rows = connection.execute(
        f"SELECT {ROW}, parameters, durable, embedded, attempt, retries FROM tasks "  # noqa: S608 - a constant
        "WHERE state IN ('pending', 'running') ORDER BY submitted, sequence"
    ).fetchall()
    dead = {runtime for runtime in {row[1] for row in rows} if not lives(runtime)}
    ours = []
    for row in rows:
        task_of_row, (parameters, durable, hosted, attempt, retries) = row[:6], row[6:]
        if row[1] not in dead:
            continue
        waits = durable and not hosted and (row[2] == TaskState.PENDING or attempt <= retries)
        if waits and embedded:
            continue
        task = task_of(task_of_row, me, parameters if waits else None)
        owner = me if waits else row[1]
        changed = _queued_again(task, now) if waits else _interrupted(task, bool(durable), bool(hosted), now)
        record = record_of(changed, owner, bool(hosted))
        connection.execute("UPDATE tasks SET runtime = ? WHERE id = ?", (owner, task.task_id))
        record.update(connection)
        if waits:
            ours.append(changed.model_copy(update={"runtime": me, "here": True}))
    return ours


def _queued_again(task: Task, now: float) -> Task:
    if task.status == TaskState.PENDING:
        return task
    return task.model_copy(
        update={
            "status": TaskState.PENDING,
            "timestamp": iso(now),
            "started_at": None,
            "device_used": None,
            "execution_time": None,
            "progress": None,
            "cancel_stage": None,
        }
    )


def _interrupted(task: Task, durable: bool, hosted: bool, now: float) -> Task:
    if hosted:
        message = "The kernel that hosted this task ended before the task was done: run it again."
    elif durable:
        message = (
            "The runtime ended while this task ran. It may have done part of its work, so it is not run again by itself: "
            "submit it again, or with `retries`."
        )
    else:
        message = (
            "The runtime ended before this task was done, and nobody waits for its result any more: submit it again, "
            'or with `"wait": false` if it should outlive the server.'
        )
    return task.model_copy(
        update={
            "status": TaskState.INTERRUPTED,
            "timestamp": iso(now),
            "finished_at": iso(now),
            "error": message,
            "failure": Failure(kind=FailureKind.INTERRUPTED, message=message),
        }
    )
