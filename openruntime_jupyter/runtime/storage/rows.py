"""Conversion between tasks and rows, and writes with the SQL guards that protect a row from invalid changes.

Buffered rows are written many at once. While SQLite works, Python's other threads run. Between two statements the writer waits for the
interpreter lock, and then the loop waits for the writer: one statement per row would cost the loop about as much as all its other work
for a short task (benchmark row "throughput of empty tasks").
"""

from __future__ import annotations

import functools
import json
import logging
import operator
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.operations.parameter_summary import search_text
from openruntime_jupyter.runtime.permissions import close_to_others
from openruntime_jupyter.runtime.storage.search import Text, with_id, write_texts
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Task, TaskOutput, TaskState

log = logging.getLogger(__name__)

TRANSIENT_FIELDS = {"parameters", "runtime", "here", "position", "estimated_start", "waiting_for", "resident_bytes"}
"""Fields left out of the document: they have a column, or are valid only while the runtime runs."""
ROW = "id, runtime, state, operation, submitted, CAST(document AS BLOB)"
"""Columns that `task_of` reads. The document is read as bytes, because text with damaged bytes would be repaired silently."""
DAMAGED = "The history's record of this task is damaged"
NEWER = "This release cannot read the record of this task: upgrade openruntime-jupyter to see all of it"

SIZES = (64, 8) if sqlite3.sqlite_version_info >= (3, 33) else ()  # the first version with UPDATE ... FROM
"""Rows of one statement; the remainder is written row by row. Few sizes, because each is prepared and cached as one statement."""

# A terminal state never changes, and a row that another runtime took over may only be changed by that runtime.
UPDATE = "UPDATE tasks SET state = ?, finished = ?, attempt = ?, document = ? WHERE id = ? AND runtime = ? AND finished IS NULL"
UPDATE_MANY = """
UPDATE tasks SET state = new.column1, finished = new.column2, attempt = new.column3, document = new.column4
FROM (VALUES {}) AS new WHERE id = new.column5 AND runtime = new.column6 AND finished IS NULL
"""
# Purged tasks are not inserted again. OR IGNORE and a second statement cost less than an upsert.
INSERT_MANY = """
INSERT OR IGNORE INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, notebook, title, document, parameters,
    text)
SELECT * FROM (VALUES {}) AS new WHERE NOT EXISTS (SELECT 1 FROM gone WHERE id = new.column1)
"""
PAYLOADS = "INSERT OR REPLACE INTO payloads (task_id, stored, size, encoding, file, data) VALUES {}"

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - both sides of the difference are UTC, and naive ones subtract faster
MICROSECOND = timedelta(microseconds=1)

Payload = tuple[str, "bytes | Path"]
"""Encoding and data of a task's opaque result."""
Row = tuple[Any, ...]
Item = TypeVar("Item")

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def encode_parameters(parameters: dict[str, Any]) -> str:
    """Return parameters as JSON, including NaN and text that UTF-8 cannot encode."""
    try:
        return to_json(parameters, inf_nan_mode="constants", fallback=str).decode()
    except Exception:  # the slower encoder of the standard library accepts more
        return _encode(parameters)


def decode_parameters(encoded: bytes) -> dict[str, Any]:
    """Return parameters of `encode_parameters`; raise `ValueError`, `TypeError` or `RecursionError`."""
    try:
        parameters = from_json(encoded)
    except ValueError:
        parameters = json.loads(encoded)
    if not isinstance(parameters, dict):
        raise TypeError("the parameters are not an object")
    return parameters


def now_micros() -> int:
    """Return the current time in microseconds since the epoch."""
    return time.time_ns() // 1000


def micros(timestamp: str) -> int:
    """Return a `Timestamp` in microseconds since the epoch."""
    return (datetime.fromisoformat(timestamp.removesuffix("Z")) - EPOCH) // MICROSECOND


class TaskRecord(NamedTuple):
    """Snapshot of a task, ready to be written; its fields are the columns of `INSERT_MANY` in order, without the last one."""

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
    notebook: str | None
    title: str
    document: str
    parameters: dict[str, Any] | None

    @property
    def change(self) -> Row:
        """Values of `UPDATE`."""
        return self.state, self.finished, self.attempt, self.document, self.id, self.runtime

    @property
    def text(self) -> Text:
        """Text of the code and the parameters, with its id."""
        return with_id(search_text(self.parameters))

    def row(self, text_id: int) -> Row:
        """Return the values of `INSERT_MANY`, the parameters as JSON."""
        return (*self[:-1], None if self.parameters is None else encode_parameters(self.parameters), text_id)

    def write(self, connection: sqlite3.Connection, known: bool) -> bool:
        """Write the record. Return False if a guard rejected it.

        `known` means that the row exists, which avoids encoding the parameters.
        """
        if known and self._update(connection):
            return True
        text = self.text
        if _execute(connection, INSERT_MANY, [self.row(text[0])]):
            write_texts(connection, [text])
            return True
        return not known and self._update(connection)

    def _update(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute(UPDATE, self.change).rowcount)


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
        task.notebook,
        title_of(task),
        text_of(task, TRANSIENT_FIELDS),
        task.parameters,
    )


def title_of(task: Task) -> str:
    """Return the text in which a search by name looks."""
    title = (task.name or task.operation).casefold()
    return title if title.isascii() else title.encode("utf-8", "replace").decode()


def text_of(model: BaseModel, leave_out: set[str] | None = None) -> str:
    """Return a model as JSON text, replacing values that JSON or UTF-8 cannot represent."""
    try:
        return model.model_dump_json(exclude=leave_out, exclude_none=True, warnings=False)
    except Exception:
        # pydantic and UTF-8 raise different types, and neither may lose a record.
        content = model.model_dump(mode="python", exclude=leave_out, exclude_none=True, warnings=False)
        text = json.dumps(content, ensure_ascii=False, default=str, skipkeys=True)
        return text.encode("utf-8", "replace").decode()


def write_or_raise(connection: sqlite3.Connection, record: TaskRecord, known: bool) -> None:
    """Write a record; raise `TaskConflict` if this runtime may not change the row."""
    if record.write(connection, known):
        return
    row = connection.execute("SELECT runtime, state FROM tasks WHERE id = ?", (record.id,)).fetchone()
    if row is None:
        raise TaskConflict(f"{record.id} was purged and is not recorded again")
    if row[0] != record.runtime:
        raise TaskConflict(f"{record.id} was taken over by the runtime {row[0]}: it must not run here")
    if row[1] != record.state:
        raise TaskConflict(f"{record.id} is {row[1]}, which is final")


def write_records(connection: sqlite3.Connection, records: Sequence[tuple[TaskRecord, bool]]) -> list[TaskRecord]:
    """Write records of different tasks, each given with whether its row exists. Return the written ones."""
    prepared: dict[bool, list[tuple[TaskRecord, Row]]] = {True: [], False: []}
    texts: dict[int, str] = {}
    for record, known in records:
        with DataErrorLog(record.id):
            if known:
                prepared[known].append((record, record.change))
            else:
                text_id, text = record.text
                prepared[known].append((record, record.row(text_id)))
                texts[text_id] = text
    written: list[TaskRecord] = []
    for known, template in ((True, UPDATE_MANY), (False, INSERT_MANY)):
        for group in _groups(prepared[known]):
            if len(group) > 1 and _at_once(connection, template, [row for _, row in group]):
                written += [record for record, _ in group]
                continue
            for record, _ in group:
                with DataErrorLog(record.id):
                    if record.write(connection, known):
                        written.append(record)
    write_texts(connection, list(texts.items()))
    return written


def write_outputs(connection: sqlite3.Connection, outputs: dict[str, TaskOutput]) -> None:
    """Write outputs by task."""
    for task_id, output in outputs.items():
        with DataErrorLog(task_id):
            values = task_id, now_micros(), text_of(output)
            connection.execute("INSERT OR REPLACE INTO outputs (task_id, stored, document) VALUES (?, ?, ?)", values)


def write_payloads(connection: sqlite3.Connection, payloads: dict[str, Payload]) -> None:
    """Write payloads by task; files become private."""
    rows: list[Row] = []
    for task_id, (encoding, data) in payloads.items():
        with DataErrorLog(task_id):
            if isinstance(data, Path):
                close_to_others(data)
                rows.append((task_id, now_micros(), data.stat().st_size, encoding, data.name, None))
            else:
                rows.append((task_id, now_micros(), len(data), encoding, None, data))
    for group in _groups(rows):
        if len(group) > 1 and _at_once(connection, PAYLOADS, group):
            continue
        for row in group:
            with DataErrorLog(row[0]):
                _execute(connection, PAYLOADS, [row])


def probe(connection: sqlite3.Connection) -> None:
    """Write and delete a row, to check that the disk has space."""
    connection.execute("INSERT INTO probe VALUES (zeroblob(65536))")
    connection.execute("DELETE FROM probe")


class DataErrorLog:
    """Context that logs the error of a record that cannot be encoded, so that it does not block the others; it passes on disk errors.

    A class, because a generator would cost two microseconds more, several times per task.
    """

    __slots__ = ("_task_id",)

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception) or not _is_data_error(error):
            return False
        log.error("Cannot write the record of %s", self._task_id, exc_info=error)
        return True


def _is_data_error(error: Exception) -> bool:
    return not isinstance(error, sqlite3.DatabaseError) or isinstance(error, (sqlite3.DataError, sqlite3.ProgrammingError))


def _groups(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the items in order in groups of `SIZES`, then the remaining ones individually."""
    start = 0
    for size in (*SIZES, 1):
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


def _at_once(connection: sqlite3.Connection, template: str, rows: Sequence[Row]) -> bool:
    """Write all of these rows, or none if a guard rejects one or SQLite does not accept a value. Return whether they were written."""
    connection.execute("SAVEPOINT together")
    try:
        done = _execute(connection, template, rows) == len(rows)
    except Exception as error:
        if not _is_data_error(error):
            raise
        done = False
    if not done:
        connection.execute("ROLLBACK TO together")
    connection.execute("RELEASE together")
    return done


def _execute(connection: sqlite3.Connection, template: str, rows: Sequence[Row]) -> int:
    values = [value for row in rows for value in row]
    return connection.execute(_statement(template, len(rows), len(rows[0])), values).rowcount


@functools.cache
def _statement(template: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return template.format(", ".join([row] * rows))


def task_of(row: Row, me: str, parameters: bytes | None = None) -> Task:
    """Return the Task of a row of `ROW`; `me` is the reading runtime. An unreadable record has the reason as its error."""
    return read_task(row, me, parameters)[0]


def read_task(row: Row, me: str, parameters: bytes | None = None) -> tuple[Task, str | None]:
    """Return the Task of a row of `ROW`, and the reason if its record or its parameters cannot be read."""
    runtime, document = row[1], row[5]
    problem = None
    try:
        task = Task.model_validate_json(document)
    except ValidationError:
        task, problem = _without_unknown_fields(row)
    task.runtime = str(runtime)
    task.here = runtime == me
    if parameters is not None:
        try:
            task.parameters = decode_parameters(parameters)
        except (ValueError, TypeError, RecursionError):
            problem = problem or f"{DAMAGED}: its parameters are missing"
            task.error = task.error or problem
    return task, problem


def _without_unknown_fields(row: Row) -> tuple[Task, str | None]:
    """Return the task of another release's record without the fields unknown to this one, or else of its columns with the reason."""
    try:
        content = json.loads(row[5])
    except (ValueError, TypeError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return _from_columns(row, DAMAGED), DAMAGED
    try:
        return Task.model_validate(content), None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        unknown = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
    try:
        for *way, name in unknown:
            del functools.reduce(operator.getitem, way, content)[name]
        return Task.model_validate(content), None
    except (ValidationError, LookupError, TypeError):
        return _from_columns(row, NEWER), NEWER


def _from_columns(row: Row, problem: str) -> Task:
    """Return a task built from the columns alone, so that one unreadable record does not fail its whole page."""
    task_id, _, state, operation, submitted, _ = row
    try:
        moment = iso(submitted / 1e6)
    except (TypeError, ValueError, OverflowError, OSError):
        moment = iso(0)
    assert moment is not None
    status = TaskState(state) if state in set(TaskState) else TaskState.FAILED
    return Task(task_id=str(task_id), status=status, operation=str(operation), timestamp=moment, submitted_at=moment, error=problem)


def take_over(connection: sqlite3.Connection, me: str, embedded: bool, is_alive: Callable[[str], bool], now: float) -> list[Task]:
    """Take over the tasks of dead runtimes or mark them as interrupted. Return the tasks to queue again, oldest first.

    Runs within one exclusive transaction. An embedded runtime takes over no task, because the task would end with the kernel; it
    leaves them for a server.
    """
    rows = connection.execute(
        f"SELECT {ROW}, CAST(parameters AS BLOB), durable, embedded, attempt, retries, sequence FROM tasks "  # noqa: S608 - a constant
        "WHERE state IN ('pending', 'running') ORDER BY submitted, sequence"
    ).fetchall()
    dead = {runtime for runtime in {row[1] for row in rows} if not is_alive(str(runtime))}
    requeued = []
    for row in rows:
        task_of_row, (parameters, durable, hosted, attempt, retries, sequence) = row[:6], row[6:]
        if row[1] not in dead:
            continue
        intact = all(isinstance(number, int) for number in (durable, hosted, attempt, retries)) and "\ufffd" not in str(row[1])
        waits = not intact or (durable and not hosted and (row[2] == TaskState.PENDING or attempt <= retries))
        if waits and embedded:
            continue
        task, problem = read_task(task_of_row, me, parameters if waits else None)
        damaged = waits and not (intact and problem is None)
        waits = waits and not damaged
        owner = me if waits else str(row[1])
        if waits:
            changed = _requeued(task, now)
        elif damaged:
            changed = _ended(task, TaskState.FAILED, f"{problem or DAMAGED}. It was not run: submit it again", now)
        else:
            changed = _ended(task, TaskState.INTERRUPTED, _reason(bool(durable), bool(hosted)), now)
        record = record_of(changed, owner, bool(hosted))
        connection.execute(
            "UPDATE tasks SET runtime = ?, state = ?, finished = ?, attempt = ?, document = ? WHERE sequence = ?",
            (owner, *record.change[:4], sequence),
        )
        if waits:
            requeued.append(changed.model_copy(update={"runtime": me, "here": True}))
    return requeued


def _requeued(task: Task, now: float) -> Task:
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


def _reason(durable: bool, hosted: bool) -> str:
    """Return why a task of a dead runtime is interrupted."""
    if hosted:
        return "The kernel that hosted this task ended before the task finished: run it again"
    if durable:
        return (
            "The runtime ended while this task ran. It may have done part of its work, so it is not restarted automatically: "
            "submit it again, or use `retries`."
        )
    return (
        "The runtime ended before this task finished, and its client is disconnected. Submit it again, "
        'with `"wait": false` if it should outlive the server.'
    )


def _ended(task: Task, state: TaskState, message: str, now: float) -> Task:
    kind = FailureKind.INTERRUPTED if state is TaskState.INTERRUPTED else FailureKind.NOT_STARTED
    return task.model_copy(
        update={
            "status": state,
            "timestamp": iso(now),
            "finished_at": iso(now),
            "error": message,
            "failure": Failure(kind=kind, message=message),
        }
    )
