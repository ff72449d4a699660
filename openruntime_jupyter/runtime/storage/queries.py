"""Queries of the task history. Each function runs on a connection within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from openruntime_jupyter.errors import IdempotencyKeyInUse, InvalidRequest, TaskConflict
from openruntime_jupyter.operations.parameter_summary import contains
from openruntime_jupyter.runtime.storage.rows import ROW, TaskRecord, task_of, title_of, write_or_raise
from openruntime_jupyter.runtime.storage.schema import STATES
from openruntime_jupyter.runtime.storage.search import ids_of
from openruntime_jupyter.schemas.tasks import OutputItem, Task, TaskOutput

KEY_MICROSECONDS = 24 * 3600 * 1_000_000
"""Lifetime of an idempotency key."""
COLLECTING = 3
"""Cost of collecting a matching task and sorting it, relative to that of reading a task in order or a group."""
MARKS = 500
"""Maximum number of values in one statement."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Filter:
    """Filter of a task list; None matches everything."""

    states: tuple[str, ...] | None = None
    operation: str | None = None
    owner: str | None = None
    notebook: str | None = None
    name: str | None = None
    """Part of the name or, of an unnamed task, of the operation; case is ignored."""
    search: str | None = None
    """Part of the name, or of the text of the code and the parameters; case is ignored."""
    texts: str = "[]"
    """Ids of the texts that contain `search`; see `looked_up`."""

    def looked_up(self, connection: sqlite3.Connection) -> Filter:
        """Return the filter with its `texts`, which its conditions in SQL need."""
        return self if self.search is None else replace(self, texts=ids_of(connection, self.search))

    @property
    def by_text(self) -> bool:
        """True if names or texts must be searched."""
        return self.name is not None or self.search is not None

    def columns(self) -> tuple[str, list[Any]]:
        """Return the SQL of the conditions except the states and those on texts, starting with AND, and its values."""
        conditions = {"operation = ?": self.operation, "owner = ?": self.owner, "notebook = ?": self.notebook}
        given = {condition: value for condition, value in conditions.items() if value is not None}
        return "".join(f" AND {condition}" for condition in given), list(given.values())

    def groups(self) -> tuple[str, list[Any]]:
        """Return the SQL of the conditions on rows of `task_groups`, starting with AND, and its values."""
        conditions, values = "", []
        if self.name is not None:
            conditions, values = " AND instr(title, ?)", [self.name.casefold()]
        if self.search is not None:
            conditions += " AND (instr(title, ?) OR text IN (SELECT value FROM json_each(?)))"
            values += [self.search.casefold(), self.texts]
        columns, others = self.columns()
        if columns:
            conditions += f" AND counter IN (SELECT id FROM counters WHERE 1{columns})"  # noqa: S608 - constants
        return conditions, values + others

    @property
    def number(self) -> str:
        """Return the SQL of the number of tasks in these states, in a row of `counters` or `task_groups`."""
        return " + ".join(state for state in STATES if self.states is None or state in self.states) or "0"

    def matches(self, task: Task) -> bool:
        """Return whether a task that is not on disk, with its parameters, matches."""
        return (
            (self.states is None or task.status.value in self.states)
            and self.operation in (None, task.operation)
            and self.owner in (None, task.owner)
            and self.notebook in (None, task.notebook)
            and (self.name is None or self.name.casefold() in title_of(task))
            and (self.search is None or contains(title_of(task), task.parameters, self.search))
        )


def one(connection: sqlite3.Connection, task_id: str, me: str, parameters: bool) -> Task | None:
    """Return the task, with its parameters if wanted, or None if it is unknown."""
    column = "CAST(parameters AS BLOB)" if parameters else "NULL"
    row = connection.execute(f"SELECT {ROW}, {column} FROM tasks WHERE id = ?", (task_id,)).fetchone()  # noqa: S608 - constants
    return None if row is None else task_of(row[:-1], me, row[-1])


def page(
    connection: sqlite3.Connection,
    me: str,
    wanted: Filter,
    limit: int,
    before: str | None,
    offset: int,
    unwritten: Sequence[Task] = (),
) -> tuple[list[Task], int, str | None]:
    """Return up to `limit` tasks, newest first, after the task `before` and `offset` more.

    Also return the number of all matching tasks and the `before` of the next page. `unwritten` are tasks in the order of submission whose
    rows are missing or old, with their parameters.
    """
    wanted = wanted.looked_up(connection)
    new = _Unwritten(connection, wanted, unwritten)
    place = None if before is None else new.places.get(before) or _place(connection, before)
    stored = count(connection, wanted)
    total = stored - len(new.hidden) + len(new.matching)
    number = offset + limit + 1 + len(new.hidden) if unwritten else limit + 1
    found = _sequences(connection, wanted, stored, place, number, 0 if unwritten else offset)
    if unwritten:
        matching = (sequence for sequence in new.matching if place is None or sequence < place)
        found = sorted({*found, *matching}.difference(new.hidden.difference(new.matching)), reverse=True)[offset : offset + limit + 1]
    tasks = _tasks(connection, me, found[:limit], new.matching)
    return tasks, total, tasks[-1].task_id if tasks and len(found) > limit else None


def page_of(tasks: Sequence[Task], wanted: Filter, limit: int, before: str | None, offset: int) -> tuple[list[Task], int, str | None]:
    """Return the page of these tasks, given in the order of submission, while the file cannot be read; see `page`."""
    newest = [task for task in reversed(tasks) if wanted.matches(task)]
    start = next((index + 1 for index, task in enumerate(newest) if task.task_id == before), 0) + offset
    found = [_bare(task) for task in newest[start : start + limit]]
    return found, len(newest), found[-1].task_id if found and len(newest) > start + limit else None


def _bare(task: Task) -> Task:
    """Return the task as lists have it, without its parameters."""
    return task.model_copy(update={"parameters": None})


class _Unwritten:
    """Unwritten tasks by their sequences: those of their rows, or else the next ones.

    `matching` are those that match the filter, and `hidden` the sequences of their rows that match.
    """

    def __init__(self, connection: sqlite3.Connection, wanted: Filter, tasks: Sequence[Task]) -> None:
        self.places: dict[str, int] = {}
        self.matching: dict[int, Task] = {}
        self.hidden: set[int] = set()
        if not tasks:
            return
        for ids in _parts([task.task_id for task in tasks]):
            self.places.update(connection.execute(f"SELECT id, sequence FROM tasks WHERE id IN ({_marks(ids)})", ids))  # noqa: S608 - constants
        conditions, values = _listed(wanted)
        for some in _parts(list(self.places.values())):
            query = f"SELECT sequence FROM listed WHERE sequence IN ({_marks(some)}){conditions}"  # noqa: S608 - constants
            self.hidden.update(sequence for (sequence,) in connection.execute(query, [*some, *values]))
        (following,) = connection.execute("SELECT ifnull(max(sequence), 0) + 1 FROM tasks").fetchone()
        for task in tasks:
            if task.task_id not in self.places:
                self.places[task.task_id] = following
                following += 1
        self.matching = {self.places[task.task_id]: _bare(task) for task in tasks if wanted.matches(task)}


def _parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    return (values[start : start + MARKS] for start in range(0, len(values), MARKS))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _tasks(connection: sqlite3.Connection, me: str, sequences: Sequence[int], given: Mapping[int, Task]) -> list[Task]:
    """Return the tasks with these sequences, from `given` or from their rows."""
    tasks = dict(given)
    for some in _parts([sequence for sequence in sequences if sequence not in given]):
        query = f"SELECT {ROW}, sequence FROM tasks WHERE sequence IN ({_marks(some)})"  # noqa: S608 - constants
        tasks.update((row[-1], task_of(row[:-1], me)) for row in connection.execute(query, some))
    return [tasks[sequence] for sequence in sequences if sequence in tasks]


def waiting_elsewhere(
    connection: sqlite3.Connection, me: str, wanted: Filter, here: int, limit: int, offset: int
) -> tuple[list[Task], int]:
    """Return up to `limit` matching pending tasks of runtimes other than `me`, oldest first, and the number of all of them.

    The query runs only if the counters show more pending tasks than the `here` of this runtime.
    """
    if count(connection, Filter(("pending",))) <= here:
        return [], 0
    conditions, values = wanted.looked_up(connection).groups()
    group = "(SELECT task_group FROM listed WHERE listed.sequence = tasks.sequence)"
    those = f" AND {group} IN (SELECT id FROM task_groups WHERE 1{conditions})" if conditions else ""  # noqa: S608 - constants
    others = f"FROM tasks WHERE state = 'pending' AND runtime != ?{those}"
    (number,) = connection.execute(f"SELECT count(*) {others}", (me, *values)).fetchone()
    query = f"SELECT {ROW} {others} ORDER BY sequence LIMIT ? OFFSET ?"
    return [task_of(row, me) for row in connection.execute(query, (me, *values, limit, offset))], number


def count(connection: sqlite3.Connection, wanted: Filter) -> int:
    """Return the number of matching tasks, from tables that stay small however many tasks are stored."""
    table, (conditions, values) = ("task_groups", wanted.groups()) if wanted.by_text else ("counters", wanted.columns())
    query = f"SELECT ifnull(sum({wanted.number}), 0) FROM {table} WHERE 1{conditions}"  # noqa: S608 - constants
    return int(connection.execute(query, values).fetchone()[0])


def _place(connection: sqlite3.Connection, task_id: str) -> int:
    for table in ("tasks", "gone"):
        row = connection.execute(f"SELECT sequence FROM {table} WHERE id = ?", (task_id,)).fetchone()  # noqa: S608 - constants
        if row is not None:
            return int(row[0])
    raise InvalidRequest.of("before", f"no task has the id {task_id!r}: begin at the newest, without `before`")


def _listed(wanted: Filter, every_group: bool = False) -> tuple[str, list[Any]]:
    """Return the conditions on rows of `listed`, starting with AND, and their values."""
    conditions, values = wanted.groups()
    if every_group or wanted.by_text:
        conditions = f" AND task_group IN (SELECT id FROM task_groups WHERE {wanted.number}{conditions})"  # noqa: S608 - constants
    if wanted.states is not None:
        conditions += f" AND state IN ({_marks(wanted.states)})"
        values += wanted.states
    return conditions, values


def _sequences(connection: sqlite3.Connection, wanted: Filter, total: int, place: int | None, number: int, offset: int) -> list[int]:
    """Return up to `number` sequences of the `total` matching tasks, newest first, after `offset` others below `place`.

    The cheaper of two ways is used: to read all tasks in order, from the nearer end, or to collect the matching ones and sort them.
    """
    if offset >= total:
        return []
    everything = count(connection, Filter())
    oldest_first = place is None and offset > total // 2
    if oldest_first:
        number = min(number, total - offset)
        offset = total - offset - number
    (groups,) = connection.execute("SELECT ifnull(max(id), 0) FROM task_groups").fetchone()
    groups = min(groups, count(connection, replace(wanted, states=None, name=None, search=None)))
    collected = COLLECTING * total + groups < min(everything, (offset + number) * everything / total)
    conditions, values = _listed(wanted, collected)
    if place is not None:
        conditions += " AND sequence < ?"
        values.append(place)
    query = (
        f"SELECT sequence FROM listed {'INDEXED BY listed_group' if collected else 'NOT INDEXED'} WHERE 1{conditions} "  # noqa: S608 - constants
        f"ORDER BY sequence {'ASC' if oldest_first else 'DESC'} LIMIT ? OFFSET ?"
    )
    found = [sequence for (sequence,) in connection.execute(query, [*values, number, offset])]
    return found[::-1] if oldest_first else found


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
            raise IdempotencyKeyInUse("Another server is using this Idempotency-Key: repeat the request to get its tasks")
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
