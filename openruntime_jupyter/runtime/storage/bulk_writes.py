"""Many rows by one statement.

While SQLite works, Python's other threads run; between two statements the writer waits for the interpreter's lock, and then the
loop waits for the writer. A statement for each row would cost the loop about as much as all else that it does for a short task.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.storage.queries import remember_key
from openruntime_jupyter.runtime.storage.rows import Record, write, write_or_tell

log = logging.getLogger(__name__)

SIZES = (64, 8) if sqlite3.sqlite_version_info >= (3, 33) else ()  # UPDATE ... FROM is as old as that
"""Rows of one statement; what is left over goes one by one. Only so many forms of each statement are prepared, once."""

INSERT = """
INSERT OR IGNORE INTO tasks
    (id, runtime, state, operation, owner, submitted, finished, durable, embedded, attempt, retries, document, parameters)
SELECT * FROM (VALUES {}) AS new WHERE NOT EXISTS (SELECT 1 FROM gone WHERE id = new.column1)
"""
UPDATE = """
UPDATE tasks SET state = new.column1, finished = new.column2, attempt = new.column3, document = new.column4
FROM (VALUES {}) AS new WHERE id = new.column5 AND runtime = new.column6 AND finished IS NULL
"""
PAYLOADS = "INSERT OR REPLACE INTO payloads (task_id, stored, size, encoding, file, data) VALUES {}"

Row = tuple[Any, ...]
Item = TypeVar("Item")


def write_records(connection: sqlite3.Connection, records: Sequence[tuple[Record, bool]]) -> list[Record]:
    """Write records of different tasks, each with whether its row is there; those that were written."""
    prepared: dict[bool, list[tuple[Record, Row]]] = {True: [], False: []}
    for record, known in records:
        try:
            prepared[known].append((record, record.change if known else record.row))
        except Exception as error:
            tell(record.id, error)
    written: list[Record] = []
    for known, template in ((True, UPDATE), (False, INSERT)):
        for group in _groups(prepared[known]):
            if len(group) > 1 and _at_once(connection, template, [row for _, row in group]):
                written += [record for record, _ in group]
                continue
            for record, _ in group:
                try:
                    if write(connection, record, known):
                        written.append(record)
                except Exception as error:
                    tell(record.id, error)
    return written


def write_payloads(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Write payloads, given as rows of `PAYLOADS`."""
    for group in _groups(rows):
        if len(group) > 1 and _at_once(connection, PAYLOADS, group):
            continue
        for row in group:
            try:
                _execute(connection, PAYLOADS, [row])
            except Exception as error:
                tell(row[0], error)


def tell(task_id: str, error: Exception) -> None:
    """One record that can't be encoded must not keep the others waiting for ever; what is the disk's fault is raised again."""
    if not _is_its_own_fault(error):
        raise error
    log.error("The record of %s can't be written", task_id, exc_info=error)


def _is_its_own_fault(error: Exception) -> bool:
    return not isinstance(error, sqlite3.DatabaseError) or isinstance(error, (sqlite3.DataError, sqlite3.ProgrammingError))


def _groups(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in their order, in groups of `SIZES`, and the rest each for itself."""
    start = 0
    for size in (*SIZES, 1):
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


def _at_once(connection: sqlite3.Connection, template: str, rows: Sequence[Row]) -> bool:
    """Whether all of these were written; otherwise none is: a guard kept a row, or one has a value that SQLite does not take."""
    connection.execute("SAVEPOINT together")
    try:
        done = _execute(connection, template, rows) == len(rows)
    except Exception as error:
        if not _is_its_own_fault(error):
            raise
        done = False
    if not done:
        connection.execute("ROLLBACK TO together")
    connection.execute("RELEASE together")
    return done


def _execute(connection: sqlite3.Connection, template: str, rows: Sequence[Row]) -> int:
    values = [value for row in rows for value in row]
    return connection.execute(_statement(template, len(rows), len(rows[0])), values).rowcount


@cache
def _statement(template: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return template.format(", ".join([row] * rows))


def write_new(connection: sqlite3.Connection, record: Record, key: tuple[str, str, str], now: int) -> tuple[str, str] | None:
    """Write a new task under its key (owner, key, fingerprint), or return the (task id, fingerprint) that the key stands for already."""
    owner, name, fingerprint = key
    earlier = remember_key(connection, owner, name, record.id, fingerprint, record.runtime, now)
    if earlier is None:
        write_or_tell(connection, record, known=False)
    return earlier


def write_all(connection: sqlite3.Connection, records: list[Record], key: tuple[str, str, str] | None, now: int) -> list[Record]:
    """Write records that are not there yet; those that were written. A row that a guard keeps spoils none of the others.

    `key` is (owner, key, fingerprint); raises `TaskConflict`, before anything is changed, where it stands for other tasks by now.
    """
    if key is not None and records:
        owner, name, fingerprint = key
        if remember_key(connection, owner, name, records[0].id, fingerprint, records[0].runtime, now) is not None:
            raise TaskConflict("This Idempotency-Key is just being used by another server: ask again for what became of it")
    return [record for record in records if write(connection, record, known=False)]
