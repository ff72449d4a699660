"""Queries of the task history. Each function runs on a connection within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openruntime_jupyter.errors import InvalidRequest, TaskConflict
from openruntime_jupyter.runtime.storage.rows import ROW, TaskRecord, task_of, write_or_raise
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskOutput

NEWEST_FIRST = "ORDER BY submitted DESC, sequence DESC"
KEY_MICROSECONDS = 24 * 3600 * 1_000_000
"""Lifetime of an idempotency key."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Filter of a task list; None matches everything."""

    states: tuple[str, ...] | None = None
    operation: str | None = None
    owner: str | None = None
    notebook: str | None = None
    name: str | None = None
    """Part of the name or, of an unnamed task, of the operation; case is ignored."""

    @property
    def index(self) -> str | None:
        """Return the index of a notebook or name, which must be used: the planner does not know how expensive these columns are."""
        if self.notebook is not None:
            return "tasks_notebook"
        return "tasks_title" if self.name is not None else None

    @property
    def table(self) -> str:
        """Return the table with the index to use, for FROM."""
        return "tasks" if self.index is None else f"tasks INDEXED BY {self.index}"

    def rest(self) -> tuple[str, list[Any]]:
        """Return the SQL of all conditions except the states, starting with AND, and its values."""
        conditions = {
            "operation = ?": self.operation,
            "owner = ?": self.owner,
            "notebook = ?": self.notebook,
            "instr(title, ?)": self.name and self.name.casefold(),
        }
        given = {condition: value for condition, value in conditions.items() if value is not None}
        return "".join(f" AND {condition}" for condition in given), list(given.values())

    def every(self) -> tuple[str, list[Any]]:
        """Return the SQL of all conditions, without AND at the start, and its values."""
        rest, values = self.rest()
        if self.states is None:
            return f"1{rest}", values
        return f"state IN ({', '.join('?' * len(self.states))}){rest}", [*self.states, *values]


def one(connection: sqlite3.Connection, task_id: str, me: str) -> Task | None:
    """Return the task with its parameters, or None if it is unknown."""
    row = connection.execute(f"SELECT {ROW}, CAST(parameters AS BLOB) FROM tasks WHERE id = ?", (task_id,)).fetchone()  # noqa: S608 - a constant
    return None if row is None else task_of(row[:-1], me, row[-1])


def page(
    connection: sqlite3.Connection, me: str, wanted: Filter, limit: int, before: str | None, offset: int
) -> tuple[list[Task], int, str | None]:
    """Return up to `limit` tasks, newest first, after the task `before` and `offset` more.

    Also return the number of all matching tasks and the `before` of the next page.
    """
    if wanted.states == ():
        return [], 0, None
    total = count(connection, wanted)
    place = None if before is None else _place(connection, before)
    sequences, values = _sequences(wanted, place, limit + 1, offset)
    query = f"SELECT {ROW} FROM tasks WHERE sequence IN ({sequences}) {NEWEST_FIRST}"  # noqa: S608 - constants
    rows = connection.execute(query, values).fetchall()
    tasks = [task_of(row, me) for row in rows[:limit]]
    return tasks, total, tasks[-1].task_id if tasks and len(rows) > limit else None


def waiting_elsewhere(
    connection: sqlite3.Connection, me: str, wanted: Filter, here: int, limit: int, offset: int
) -> tuple[list[Task], int]:
    """Return up to `limit` matching pending tasks of runtimes other than `me`, oldest first, and the number of all of them.

    The query runs only if the counters show more pending tasks than the `here` of this runtime.
    """
    if count(connection, Filter(("pending",))) <= here:
        return [], 0
    rest, values = wanted.rest()
    others = f"FROM tasks WHERE state = 'pending' AND runtime != ?{rest}"
    (number,) = connection.execute(f"SELECT count(*) {others}", (me, *values)).fetchone()
    query = f"SELECT {ROW} {others} ORDER BY submitted, sequence LIMIT ? OFFSET ?"
    return [task_of(row, me) for row in connection.execute(query, (me, *values, limit, offset))], number


def count(connection: sqlite3.Connection, wanted: Filter) -> int:
    """Return the number of matching tasks.

    It is from the counter table, which stays small however many tasks are stored, except for a notebook or name, which are not counted.
    """
    if wanted.index is not None:
        conditions, values = wanted.every()
        query = f"SELECT count(*) FROM {wanted.table} WHERE {conditions}"  # noqa: S608 - constants
        return int(connection.execute(query, values).fetchone()[0])
    rest, values = wanted.rest()
    query = f"SELECT ifnull(sum(number), 0) FROM counters WHERE 1{rest}"  # noqa: S608 - constants
    if wanted.states is None:
        return int(connection.execute(query, values).fetchone()[0])
    return sum(int(connection.execute(f"{query} AND state = ?", [*values, state]).fetchone()[0]) for state in wanted.states)


def _place(connection: sqlite3.Connection, task_id: str) -> tuple[int, int]:
    for table in ("tasks", "gone"):
        row = connection.execute(f"SELECT submitted, sequence FROM {table} WHERE id = ?", (task_id,)).fetchone()  # noqa: S608 - constants
        if row is not None:
            return int(row[0]), int(row[1])
    raise InvalidRequest.of("before", f"no task has the id {task_id!r}: begin at the newest, without `before`")


def _sequences(wanted: Filter, place: tuple[int, int] | None, number: int, offset: int) -> tuple[str, list[Any]]:
    """Return the query for a page's rows and its values.

    It merges the newest rows of each state from narrow indexes, so every page costs the same. For a notebook or name it reads their
    index instead.
    """
    merged = wanted.states is not None and wanted.index is None
    conditions, values = wanted.rest() if merged else wanted.every()
    if place is not None:
        conditions += " AND (submitted, sequence) < (?, ?)"
        values += place
    values.append(number + offset)
    query = f"SELECT submitted, sequence FROM {wanted.table} WHERE {'state = ?' if merged else ''}{conditions} {NEWEST_FIRST} LIMIT ?"  # noqa: S608 - constants
    if merged and wanted.states is not None:
        query = " UNION ALL ".join(f"SELECT * FROM ({query})" for _ in wanted.states)  # noqa: S608 - constants
        values = [value for state in wanted.states for value in (state, *values)]
    return f"SELECT sequence FROM ({query}) {NEWEST_FIRST} LIMIT ? OFFSET ?", [*values, number, offset]  # noqa: S608 - constants


def output(connection: sqlite3.Connection, task_id: str) -> TaskOutput | None:
    """Return the output of the task, or None if none is stored."""
    row = connection.execute("SELECT CAST(document AS BLOB) FROM outputs WHERE task_id = ?", (task_id,)).fetchone()
    if row is None:
        return None
    try:
        return TaskOutput.model_validate_json(row[0])
    except ValidationError:
        lost = OutputItem(output_type="stream", name="stderr", text="The history's record of this output is damaged\n")
        return TaskOutput(task_id=task_id, items=[lost], next=1, truncated=True)


def payloads(connection: sqlite3.Connection, task_ids: Sequence[str], folder: Path) -> dict[str, tuple[bytes | Path, str]]:
    """Return the opaque results of these tasks, each as bytes or as its file, with the encoding; omit missing ones."""
    found: dict[str, tuple[bytes | Path, str]] = {}
    for task_id in task_ids:
        row = connection.execute("SELECT encoding, file, data FROM payloads WHERE task_id = ?", (task_id,)).fetchone()
        if row is None:
            continue
        encoding, name, data = row
        if name is None:
            found[task_id] = data, encoding
        elif (file := folder / name).exists():
            found[task_id] = file, encoding
    return found


def remember_key(
    connection: sqlite3.Connection, owner: str, key: str, task_id: str | None, fingerprint: str, runtime: str, now: int
) -> tuple[str, str] | None:
    """Store an idempotency key (unless `task_id` is None), or return the (task id, fingerprint) it already belongs to.

    A key becomes free again if its task was purged, or if another runtime stored it and died before recording the task.
    """
    row = connection.execute(
        "SELECT task_id, fingerprint, runtime, stored, EXISTS (SELECT 1 FROM tasks WHERE id = keys.task_id), "
        "EXISTS (SELECT 1 FROM gone WHERE id = keys.task_id) FROM keys "
        "WHERE owner = ? AND key = ?",
        (owner, key),
    ).fetchone()
    if row is not None:
        known_task, known_fingerprint, by, stored, recorded, purged = row
        if stored > now - KEY_MICROSECONDS and not purged and (recorded or by == runtime):
            return known_task, known_fingerprint
    if task_id is not None:
        connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?)", (owner, key, task_id, fingerprint, runtime, now))
    return None


def write_new(connection: sqlite3.Connection, record: TaskRecord, key: tuple[str, str, str], now: int) -> tuple[str, str] | None:
    """Write a new task under its key (owner, key, fingerprint), or return the (task id, fingerprint) that the key already belongs to."""
    owner, name, fingerprint = key
    earlier = remember_key(connection, owner, name, record.id, fingerprint, record.runtime, now)
    if earlier is None:
        write_or_raise(connection, record, known=False)
    return earlier


def write_all(connection: sqlite3.Connection, records: list[TaskRecord], key: tuple[str, str, str] | None, now: int) -> list[TaskRecord]:
    """Write new records. Return the written ones; a record that a guard rejects does not affect the others.

    `key` is (owner, key, fingerprint). Raises `TaskConflict`, before anything changes, if it already belongs to other tasks.
    """
    if key is not None and records:
        owner, name, fingerprint = key
        if remember_key(connection, owner, name, records[0].id, fingerprint, records[0].runtime, now) is not None:
            raise TaskConflict("Another server is using this Idempotency-Key: repeat the request to get its tasks")
    return [record for record in records if record.write(connection, known=False)]


def delete(connection: sqlite3.Connection, task_id: str) -> list[str]:
    """Delete a task with its output, payload and turns. Return the payload files to remove.

    Raises `TaskConflict` if the task is not terminal.
    """
    row = connection.execute("SELECT state, finished FROM tasks WHERE id = ?", (task_id,)).fetchone()
    if row is None:
        return []
    if row[1] is None:
        raise TaskConflict(f"{task_id} is {row[0]}: cancel it first")
    files = connection.execute("SELECT file FROM payloads WHERE task_id = ? AND file IS NOT NULL", (task_id,)).fetchall()
    connection.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
    connection.execute("DELETE FROM turns WHERE task_id = ?", (task_id,))
    return [name for (name,) in files]
