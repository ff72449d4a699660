"""History queries for insights: the tasks of a time range as narrow rows, sampled evenly if there are too many.

Every query reads a bounded number of rows, however long the history is. Times are in seconds since the epoch, sizes in bytes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from openruntime_jupyter.runtime.storage.rows import micros

MOST_TASKS = 3_000
"""Maximum number of finished tasks read from a time range."""
MOST_FAILURES = 2_000
MOST_AROUND = 300
LOOK_BACK = 7 * 24 * 3600.0
"""Seconds that a failed task may have been submitted before the time range in which it ended."""
PARAMETER_BYTES = 4_000_000
"""Maximum bytes of parameters read to group similar tasks."""
LONGEST_ERROR = 300

UNCOMPLETED = ("failed", "timed_out", "interrupted")
"""States of tasks that neither completed nor were cancelled."""


class TaskRow(NamedTuple):
    """Fields of a task that insights use; None if not applicable or unknown."""

    task_id: str
    operation: str
    owner: str | None
    state: str
    submitted: float
    finished: float | None
    name: str | None
    started: float | None
    seconds: float | None
    device: str | None
    kind: str | None
    error: str | None
    mlx_memory: float | None
    peak_memory: float | None

    @property
    def waited(self) -> float | None:
        """Seconds from submission to the last start."""
        return None if self.started is None else max(0.0, self.started - self.submitted)


@dataclass(frozen=True, slots=True)
class Ended:
    """Tasks that ended within a time range.

    Each of `tasks` is a sample that represents `weight` of the `number` tasks. `failures` holds all tasks in a state of `UNCOMPLETED`,
    at most the newest `MOST_FAILURES` of each state.
    """

    tasks: list[TaskRow]
    weight: float
    number: int
    failures: list[TaskRow]


# A damaged record, which is not valid JSON, must not fail the query.
_TEXT = "CASE WHEN json_valid(document) THEN document ELSE '{}' END"


def _field(path: str) -> str:
    return f"json_extract({_TEXT}, '$.{path}')"


_ROW = ", ".join(
    (
        "id, operation, owner, state, submitted / 1e6, finished / 1e6",
        *map(_field, ("name", "started_at", "execution_time", "device_used", "failure.kind")),
        f"substr({_field('error')}, 1, {LONGEST_ERROR})",
        f"{_field('performance_metrics.memory_used_mb')} * 1e6",
        f"{_field('performance_metrics.peak_memory_mb')} * 1e6",
    )
)
# Knuth's multiplicative hash samples neighbours evenly, even if two types of tasks alternate.
_DRAWN = "((sequence * 2654435761) & 4294967295) < ?"
_ALL = 1 << 32


def ended(connection: sqlite3.Connection, begin: float, end: float) -> Ended:
    """Return the tasks that ended from `begin` to `end`, by end time."""
    span = _micros(begin), _micros(end)
    number = int(connection.execute("SELECT count(*) FROM tasks WHERE finished BETWEEN ? AND ?", span).fetchone()[0])
    weight = max(1.0, number / MOST_TASKS)
    tasks = _rows(
        connection,
        f"SELECT {_ROW} FROM tasks WHERE finished BETWEEN ? AND ? AND {_DRAWN} ORDER BY finished",  # noqa: S608 - constants
        (*span, _ALL / weight),
    )
    if weight == 1:
        failures = [task for task in tasks if task.state in UNCOMPLETED]
    else:
        weight = number / max(1, len(tasks))
        failures = [task for state in UNCOMPLETED for task in _failures(connection, state, begin, end)]
    return Ended(tasks, weight, number, sorted(failures, key=lambda task: task.finished or 0.0))


def _failures(connection: sqlite3.Connection, state: str, begin: float, end: float) -> list[TaskRow]:
    query = f"SELECT {_ROW} FROM tasks WHERE state = ? AND submitted >= ? AND +finished BETWEEN ? AND ? ORDER BY submitted DESC LIMIT ?"  # noqa: S608 - constants
    return _rows(connection, query, (state, _micros(begin - LOOK_BACK), _micros(begin), _micros(end), MOST_FAILURES))


def running(connection: sqlite3.Connection) -> list[TaskRow]:
    """Return the running tasks of all runtimes."""
    query = f"SELECT {_ROW} FROM tasks WHERE state = 'running' ORDER BY submitted DESC LIMIT ?"  # noqa: S608 - constants
    return _rows(connection, query, (MOST_AROUND,))


def around(connection: sqlite3.Connection, begin: float, end: float) -> list[TaskRow]:
    """Return tasks that ran between `begin` and `end`, from those that ended within it or soon after it and from running ones."""
    span = _micros(begin), _micros(end)
    number = int(connection.execute("SELECT count(*) FROM tasks WHERE finished BETWEEN ? AND ?", span).fetchone()[0])
    within = f"SELECT {_ROW} FROM tasks WHERE finished BETWEEN ? AND ? AND {_DRAWN} ORDER BY finished LIMIT ?"  # noqa: S608 - constants
    found = _rows(connection, within, (*span, _ALL * min(1.0, MOST_AROUND / max(1, number)), 2 * MOST_AROUND))
    # The inner limit keeps the query from reading to the end of the history.
    later = (
        f"SELECT {_ROW} FROM tasks WHERE submitted <= ?2 AND sequence IN "  # noqa: S608 - constants
        "(SELECT sequence FROM tasks WHERE finished > ?2 ORDER BY finished LIMIT ?3) LIMIT ?1"
    )
    found += _rows(connection, later, (MOST_AROUND, span[1], 10 * MOST_AROUND))
    found += [task for task in running(connection) if task.submitted <= end]
    return [task for task in found if task.started is not None and task.started <= end]


def durations(connection: sqlite3.Connection, operation: str, begin: float, end: float, most: int) -> dict[int, list[float]]:
    """Return the run times of up to `most` completed tasks of the operation submitted from `begin` to `end`, newest first.

    They are grouped by a checksum of name and parameters, so that each group holds similar tasks.
    """
    query = (
        f"SELECT json_extract({_TEXT}, '$.execution_time'), json_extract({_TEXT}, '$.name'), parameters FROM tasks "  # noqa: S608 - constants
        "WHERE state = 'completed' AND operation = ? AND submitted >= ? AND submitted < ? ORDER BY submitted DESC LIMIT ?"
    )
    found: dict[int, list[float]] = {}
    read = 0
    for seconds, name, parameters in connection.execute(query, (operation, _micros(begin), _micros(end), most)):
        if seconds is None:
            continue
        content = f"{name}\n{parameters}".encode(errors="replace")
        found.setdefault(zlib.crc32(content), []).append(seconds)
        read += len(content)
        if read > PARAMETER_BYTES:
            break
    return found


def _rows(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> list[TaskRow]:
    found = []
    for row in connection.execute(query, values):
        # A damaged time must not fail the query.
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            found.append(TaskRow._make((*row[:7], None if row[7] is None else micros(row[7]) / 1e6, *row[8:])))
    return found


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
