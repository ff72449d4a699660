"""Conversion between Task objects and rows, and the SQL guards that protect a row from invalid changes."""

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
"""Fields left out of the document: they have a column, or are valid only while the runtime runs."""

# A terminal state never changes, and a row that another runtime took over may only be changed by that runtime.
UPDATE = "UPDATE tasks SET state = ?, finished = ?, attempt = ?, document = ? WHERE id = ? AND runtime = ? AND finished IS NULL"
# Purged tasks are not inserted again. OR IGNORE and a second statement cost less than an upsert.
INSERT = """
INSERT OR IGNORE INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, document, parameters)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13
WHERE NOT EXISTS (SELECT 1 FROM gone WHERE id = ?1)
"""

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def encode(parameters: dict[str, Any] | None) -> str | None:
    """Return parameters as JSON, including NaN and text that UTF-8 cannot encode."""
    return None if parameters is None else "{}" if not parameters else _encode(parameters)


ROW = "id, runtime, state, operation, submitted, document"
"""Columns that `task_of` reads."""


EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - both sides of the difference are UTC, and naive ones subtract faster
MICROSECOND = timedelta(microseconds=1)


def micros(timestamp: str) -> int:
    """Return a `Timestamp` in microseconds since the epoch."""
    return (datetime.fromisoformat(timestamp.removesuffix("Z")) - EPOCH) // MICROSECOND


class TaskRecord(NamedTuple):
    """Snapshot of a task, ready to be written; its fields are the columns of `INSERT` in order."""

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
        """Values of `UPDATE`."""
        return self.state, self.finished, self.attempt, self.document, self.id, self.runtime

    @property
    def row(self) -> tuple[Any, ...]:
        """Values of `INSERT`."""
        return (*self[:-1], encode(self.parameters))

    def update(self, connection: sqlite3.Connection) -> bool:
        """Update the row if it exists and the guards allow it. Return whether it changed."""
        return bool(connection.execute(UPDATE, self.change).rowcount)

    def insert(self, connection: sqlite3.Connection) -> bool:
        """Insert the row if it is missing and was not purged. Return whether it was inserted."""
        return bool(connection.execute(INSERT, self.row).rowcount)


def record_of(task: Task, runtime: str, embedded: bool) -> TaskRecord:
    """Return the row of `task`; its parameters are encoded only if they must be written."""
    state = task.status
    return TaskRecord(
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
    """Return a model as JSON text, replacing values that JSON or UTF-8 cannot represent."""
    try:
        return model.model_dump_json(exclude=leave_out, exclude_none=True, warnings=False)
    except Exception:
        # pydantic and UTF-8 raise different types, and neither may lose a record.
        content = model.model_dump(mode="python", exclude=leave_out, exclude_none=True, warnings=False)
        text = json.dumps(content, ensure_ascii=False, default=str, skipkeys=True)
        return text.encode("utf-8", "replace").decode()


def write(connection: sqlite3.Connection, record: TaskRecord, known: bool) -> bool:
    """Write a record. Return False if a guard rejected it.

    `known` means that the row exists, which avoids encoding the parameters.
    """
    if known and record.update(connection):
        return True
    return record.insert(connection) or (not known and record.update(connection))


def write_or_raise(connection: sqlite3.Connection, record: TaskRecord, known: bool) -> None:
    """Write a record; raise `TaskConflict` if this runtime may not change the row."""
    if write(connection, record, known):
        return
    row = connection.execute("SELECT runtime, state FROM tasks WHERE id = ?", (record.id,)).fetchone()
    if row is None:
        raise TaskConflict(f"{record.id} was purged and is not recorded again")
    if row[0] != record.runtime:
        raise TaskConflict(f"{record.id} was taken over by the runtime {row[0]}: it must not run here")
    if row[1] != record.state:
        raise TaskConflict(f"{record.id} is {row[1]}, which is final")


def task_of(row: tuple[Any, ...], me: str, parameters: str | None = None) -> Task:
    """Return the Task of a row of `ROW`; `me` is the reading runtime."""
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
    """Return the task of a record without the fields unknown to this release, or None if the record has other errors."""
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
    """Return a task built from the columns alone, so that one unreadable record does not fail its whole page."""
    moment = iso(submitted / 1e6)
    assert moment is not None
    return Task(
        task_id=task_id,
        status=TaskState(state),
        operation=operation,
        timestamp=moment,
        submitted_at=moment,
        error="This release cannot read the record of this task: upgrade openruntime-jupyter to see all of it",
    )


def take_over(connection: sqlite3.Connection, me: str, embedded: bool, is_alive: Callable[[str], bool], now: float) -> list[Task]:
    """Take over the tasks of dead runtimes or mark them as interrupted. Return the tasks to queue again, oldest first.

    Runs within one exclusive transaction. An embedded runtime takes over no task, because the task would end with the kernel; it
    leaves them for a server.
    """
    rows = connection.execute(
        f"SELECT {ROW}, parameters, durable, embedded, attempt, retries FROM tasks "  # noqa: S608 - a constant
        "WHERE state IN ('pending', 'running') ORDER BY submitted, sequence"
    ).fetchall()
    dead = {runtime for runtime in {row[1] for row in rows} if not is_alive(runtime)}
    requeued = []
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
            requeued.append(changed.model_copy(update={"runtime": me, "here": True}))
    return requeued


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
        message = "The kernel that hosted this task ended before the task finished: run it again"
    elif durable:
        message = (
            "The runtime ended while this task ran. It may have done part of its work, so it is not restarted automatically: "
            "submit it again, or use `retries`."
        )
    else:
        message = (
            "The runtime ended before this task finished, and its client is disconnected. Submit it again, "
            'with `"wait": false` if it should outlive the server.'
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
