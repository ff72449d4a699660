"""Deletion of expired tasks, in steps that are short enough for other writes in between."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from openruntime_jupyter.runtime.storage import conversations

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
    files = connection.execute(f"SELECT file FROM payloads WHERE file IS NOT NULL AND task_id IN ({marks})", chosen).fetchall()  # noqa: S608 - constants
    connection.executemany("DELETE FROM tasks WHERE id = ?", [(task_id,) for task_id in chosen])
    return len(chosen), [name for (name,) in files]


def _oldest(connection: sqlite3.Connection, condition: str, number: int) -> list[str]:
    query = f"SELECT id FROM tasks WHERE finished IS NOT NULL AND {condition} ORDER BY finished LIMIT ?"  # noqa: S608 - constants
    return [task_id for (task_id,) in connection.execute(query, (min(number, STEP_TASKS),))]


def _too_old(connection: sqlite3.Connection, limits: Limits) -> list[str]:
    return _oldest(connection, f"finished < {limits.since:d}", STEP_TASKS) if limits.since else []


def _too_many(connection: sqlite3.Connection, limits: Limits) -> list[str]:
    if not limits.tasks:
        return []
    row = connection.execute("SELECT ifnull(sum(number), 0) FROM counters WHERE state NOT IN ('pending', 'running')").fetchone()
    excess = row[0] - limits.tasks
    return _oldest(connection, "1", excess) if excess > 0 else []


def _too_large(connection: sqlite3.Connection, limits: Limits) -> list[str]:
    if not limits.payload_bytes:
        return []
    excess = connection.execute("SELECT ifnull(sum(size), 0) FROM payloads").fetchone()[0] - limits.payload_bytes
    chosen: list[str] = []
    if excess <= 0:
        return chosen
    rows = connection.execute(
        "SELECT tasks.id, size FROM payloads JOIN tasks ON tasks.id = task_id WHERE finished IS NOT NULL ORDER BY finished LIMIT ?",
        (STEP_TASKS,),
    )
    for task_id, size in rows:
        if excess <= 0:
            break
        chosen.append(task_id)
        excess -= size
    return chosen


def expire_keys(connection: sqlite3.Connection, now: int) -> None:
    """Delete idempotency keys and traces of deleted tasks that are older than a day."""
    connection.execute("DELETE FROM keys WHERE stored < ?", (now - DAY,))
    connection.execute("DELETE FROM gone WHERE deleted < ?", (now - DAY,))


def orphans(connection: sqlite3.Connection, table: str, after: str) -> tuple[list[str], str | None]:
    """Return the rows of `table` without a task among the next ones after the id `after`, and the next `after`, None at the end."""
    query = f"SELECT task_id FROM {table} WHERE task_id > ? ORDER BY task_id LIMIT ?"  # noqa: S608 - constants
    ids = [task_id for (task_id,) in connection.execute(query, (after, STEP_ROWS))]
    lone = [task_id for task_id in ids if connection.execute("SELECT 1 FROM tasks WHERE id = ?", (task_id,)).fetchone() is None]
    return lone, ids[-1] if len(ids) == STEP_ROWS else None


def remove_orphans(connection: sqlite3.Connection, table: str, ids: list[str], now: int) -> None:
    """Delete those older than an hour; the task of a younger one may not be written yet. `unreferenced_files` finds their files."""
    connection.executemany(
        f"DELETE FROM {table} WHERE task_id = ? AND stored < ? AND NOT EXISTS (SELECT 1 FROM tasks WHERE id = task_id)",  # noqa: S608 - constants
        [(task_id, now - HOUR) for task_id in ids],
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
