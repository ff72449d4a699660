"""Many new tasks, and the idempotency key that they came under, in one piece of work of the history's writer."""

from __future__ import annotations

import sqlite3

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.history_queries import remember_key
from openruntime_jupyter.runtime.history_records import Record, write


def write_all(connection: sqlite3.Connection, records: list[Record], key: tuple[str, str, str] | None, now: int) -> list[Record]:
    """Write records that are not there yet; those that were written. A row that a guard keeps spoils none of the others.

    `key` is (owner, key, fingerprint); raises `TaskConflict`, before anything is changed, where it stands for other tasks by now.
    """
    if key is not None and records:
        owner, name, fingerprint = key
        if remember_key(connection, owner, name, records[0].id, fingerprint, records[0].runtime, now) is not None:
            raise TaskConflict("This Idempotency-Key is just being used by another server: ask again for what became of it")
    return [record for record in records if write(connection, record, known=False)]
