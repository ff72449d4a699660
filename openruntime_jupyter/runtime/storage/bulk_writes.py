"""Writes of many rows in one statement.

While SQLite works, Python's other threads run. Between two statements the writer waits for the interpreter lock, and then the loop
waits for the writer. One statement per row would cost the loop about as much as all its other work for a short task.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.storage.queries import remember_key
from openruntime_jupyter.runtime.storage.rows import TaskRecord, write, write_or_raise

log = logging.getLogger(__name__)

SIZES = (64, 8) if sqlite3.sqlite_version_info >= (3, 33) else ()  # the first version with UPDATE ... FROM
"""Rows of one statement; the remainder is written row by row. Few sizes, because each is prepared and cached as one statement."""

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


def write_records(connection: sqlite3.Connection, records: Sequence[tuple[TaskRecord, bool]]) -> list[TaskRecord]:
    """Write records of different tasks, each given with whether its row exists. Return the written ones."""
    prepared: dict[bool, list[tuple[TaskRecord, Row]]] = {True: [], False: []}
    for record, known in records:
        try:
            prepared[known].append((record, record.change if known else record.row))
        except Exception as error:
            log_data_error(record.id, error)
    written: list[TaskRecord] = []
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
                    log_data_error(record.id, error)
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
                log_data_error(row[0], error)


def log_data_error(task_id: str, error: Exception) -> None:
    """Log the error of a record that cannot be encoded, so that it does not block the others; raise errors of the disk again."""
    if not _is_data_error(error):
        raise error
    log.error("Cannot write the record of %s", task_id, exc_info=error)


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


@cache
def _statement(template: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return template.format(", ".join([row] * rows))


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
    return [record for record in records if write(connection, record, known=False)]
