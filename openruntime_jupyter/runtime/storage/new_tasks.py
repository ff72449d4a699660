"""New tasks, and the idempotency key that they came under, in one piece of work of the history's writer."""

from __future__ import annotations

import sqlite3

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.storage.queries import remember_key
from openruntime_jupyter.runtime.storage.rows import Record, write, write_or_tell


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
