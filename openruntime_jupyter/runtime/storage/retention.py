"""Deletion of expired tasks, in steps that are short enough for other writes in between."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from openruntime_jupyter.runtime.storage import conversations
from openruntime_jupyter.runtime.storage.schema import STATES

STEP_TASKS = 500
STEP_ROWS = 5_000
STEP_PAGES = 500
KEPT_PAGES = 1_000
"""Free pages that stay in the file for reuse."""
DAY = 24 * 3600 * 1_000_000
HOUR = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Retention limits; 0 means no limit.

    Finished tasks are kept if they ended after `since` (microseconds since the epoch), at most `tasks` of them with at most
    `payload_bytes` of payloads in total.
    """

    since: int
    tasks: int
    payload_bytes: int


def delete_expired(connection: sqlite3.Connection, limits: Limits) -> tuple[int, list[str]]:
    """Delete some of the oldest finished tasks that exceed a limit.

    Return their number, which is 0 once nothing is left to delete, and the payload files to remove.
    """
    chosen = _too_old(connection, limits) or _too_many(connection, limits) or _too_large(connection, limits)
    if not chosen and limits.since:
        conversations.expire(connection, limits.since)
    marks = ",".join("?" * len(chosen))
    tasks = f"FROM tasks WHERE sequence IN ({marks})"
    files = connection.execute(f"SELECT file FROM payloads WHERE file IS NOT NULL AND task_id IN (SELECT id {tasks})", chosen).fetchall()  # noqa: S608 - constants
    connection.execute(f"DELETE {tasks}", chosen)
    return len(chosen), [name for (name,) in files]


def _oldest(connection: sqlite3.Connection, condition: str, number: int) -> list[int]:
    # Rows are named by their sequence, because damaged ids match no row.
    query = f"SELECT sequence FROM tasks WHERE finished IS NOT NULL AND {condition} ORDER BY finished LIMIT ?"  # noqa: S608 - constants
    return [sequence for (sequence,) in connection.execute(query, (min(number, STEP_TASKS),))]


def _too_old(connection: sqlite3.Connection, limits: Limits) -> list[int]:
    return _oldest(connection, f"finished < {limits.since:d}", STEP_TASKS) if limits.since else []


def _too_many(connection: sqlite3.Connection, limits: Limits) -> list[int]:
    if not limits.tasks:
        return []
    finished = " + ".join(STATES[2:])
    row = connection.execute(f"SELECT ifnull(sum({finished}), 0) FROM counters").fetchone()  # noqa: S608 - constants
    excess = row[0] - limits.tasks
    return _oldest(connection, "1", excess) if excess > 0 else []


def _too_large(connection: sqlite3.Connection, limits: Limits) -> list[int]:
    if not limits.payload_bytes:
        return []
    excess = connection.execute("SELECT ifnull(sum(size), 0) FROM payloads").fetchone()[0] - limits.payload_bytes
    chosen: list[int] = []
    if excess <= 0:
        return chosen
    rows = connection.execute(
        "SELECT sequence, size FROM payloads JOIN tasks ON tasks.id = task_id WHERE finished IS NOT NULL ORDER BY finished LIMIT ?",
        (STEP_TASKS,),
    )
    for sequence, size in rows:
        if excess <= 0:
            break
        chosen.append(sequence)
        excess -= size
    return chosen


def expire_keys(connection: sqlite3.Connection, now: int) -> None:
    """Delete idempotency keys and traces of deleted tasks that are older than a day, and numbers of tasks that no longer exist."""
    for table in ("counters", "task_groups"):
        connection.execute(f"DELETE FROM {table} WHERE {' + '.join(STATES)} = 0")  # noqa: S608 - constants
    connection.execute("DELETE FROM keys WHERE stored < ?", (now - DAY,))
    connection.execute("DELETE FROM gone WHERE deleted < ?", (now - DAY,))


def orphans(connection: sqlite3.Connection, table: str, after: int) -> tuple[list[int], int | None]:
    """Return the rows of `table` without a task among the next ones after the row `after`, and the next `after`, None at the end."""
    query = f"SELECT rowid, NOT EXISTS (SELECT 1 FROM tasks WHERE id = task_id) FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608 - constants
    found = connection.execute(query, (after, STEP_ROWS)).fetchall()
    return [row for row, lone in found if lone], found[-1][0] if len(found) == STEP_ROWS else None


def remove_orphans(connection: sqlite3.Connection, table: str, rows: list[int], now: int) -> None:
    """Delete those older than an hour; the task of a younger one may not be written yet. `unreferenced_files` finds their files."""
    connection.executemany(
        f"DELETE FROM {table} WHERE rowid = ? AND stored < ? AND NOT EXISTS (SELECT 1 FROM tasks WHERE id = task_id)",  # noqa: S608 - constants
        [(row, now - HOUR) for row in rows],
    )


def unreferenced_files(connection: sqlite3.Connection, folder: Path, now: int) -> list[str]:
    """Return the files of the payload folder that no task references and that are older than an hour."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            old = path.is_file() and path.stat().st_mtime * 1e6 < now - HOUR
        except FileNotFoundError:
            continue
        if old and connection.execute("SELECT 1 FROM payloads WHERE file = ?", (path.name,)).fetchone() is None:
            found.append(path.name)
    return found


def remove_files(folder: Path, names: list[str]) -> None:
    """Remove files of the payload folder; missing ones are ignored."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def vacuum(connection: sqlite3.Connection) -> bool:
    """Return some free pages to the disk. Return whether a further call is needed."""
    free = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    if free <= KEPT_PAGES:
        return False
    connection.execute(f"PRAGMA incremental_vacuum({min(STEP_PAGES, free - KEPT_PAGES)})").fetchall()
    return True
