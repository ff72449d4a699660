"""What insights ask of the history: the tasks of a stretch of time, as narrow rows, and evenly sampled where they are too many.

Every question here is bounded in the rows that it reads, however long the history is. Times are in seconds since the epoch, sizes in
bytes.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from openruntime_jupyter.runtime.storage.rows import micros

MOST_TASKS = 3_000
"""Ended tasks that are read of a stretch of time, at most."""
MOST_FAILURES = 2_000
MOST_AROUND = 300
LOOK_BACK = 7 * 24 * 3600.0
"""Seconds that a failed task may have been submitted before the stretch in which it ended."""
PARAMETER_BYTES = 4_000_000
"""Parameters that are read to tell like from unlike, at most."""
LONGEST_ERROR = 300

UNCOMPLETED = ("failed", "timed_out", "interrupted")
"""The states of a task that nobody stopped on purpose and that did not complete."""


class Ran(NamedTuple):
    """What is asked of a task; None where it does not apply or is not known."""

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
        """Seconds from its submission to its last start."""
        return None if self.started is None else max(0.0, self.started - self.submitted)


@dataclass(frozen=True, slots=True)
class Ended:
    """The tasks that ended within a stretch of time.

    `tasks` stand for `weight` each, and there were `number`. `failures` are all that did not complete, the newest
    `MOST_FAILURES` of each state at most.
    """

    tasks: list[Ran]
    weight: float
    number: int
    failures: list[Ran]


_PATHS = (
    "name",
    "started_at",
    "execution_time",
    "device_used",
    "failure.kind",
    "error",
    "performance_metrics.memory_used_mb",
    "performance_metrics.peak_memory_mb",
)
# A record that is no JSON, which only damage makes, must not spoil the others.
_TEXT = "CASE WHEN json_valid(document) THEN document ELSE '{}' END"
_ROW = "id, operation, owner, state, submitted, finished, " + ", ".join(f"json_extract({_TEXT}, '$.{path}')" for path in _PATHS)
# Knuth's multiplicative hash spreads any neighbours evenly, also where every second task is of one kind.
_DRAWN = "((sequence * 2654435761) & 4294967295) < ?"
_ALL = 1 << 32


def ended(connection: sqlite3.Connection, begin: float, end: float) -> Ended:
    """The tasks that ended from `begin` to `end`, in the order of their ends."""
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


def _failures(connection: sqlite3.Connection, state: str, begin: float, end: float) -> list[Ran]:
    query = f"SELECT {_ROW} FROM tasks WHERE state = ? AND submitted >= ? AND +finished BETWEEN ? AND ? ORDER BY submitted DESC LIMIT ?"  # noqa: S608
    return _rows(connection, query, (state, _micros(begin - LOOK_BACK), _micros(begin), _micros(end), MOST_FAILURES))


def running(connection: sqlite3.Connection) -> list[Ran]:
    """The tasks that run now, of all runtimes."""
    query = f"SELECT {_ROW} FROM tasks WHERE state = 'running' ORDER BY submitted DESC LIMIT ?"  # noqa: S608 - constants
    return _rows(connection, query, (MOST_AROUND,))


def around(connection: sqlite3.Connection, begin: float, end: float) -> list[Ran]:
    """Tasks that ran between `begin` and `end`: of those that ended within it or soon after it, and of those that run still."""
    span = _micros(begin), _micros(end)
    number = int(connection.execute("SELECT count(*) FROM tasks WHERE finished BETWEEN ? AND ?", span).fetchone()[0])
    within = f"SELECT {_ROW} FROM tasks WHERE finished BETWEEN ? AND ? AND {_DRAWN} ORDER BY finished LIMIT ?"  # noqa: S608 - constants
    found = _rows(connection, within, (*span, _ALL * min(1.0, MOST_AROUND / max(1, number)), 2 * MOST_AROUND))
    # The limit is inside, so that what lies between is not read to the history's end.
    later = (
        f"SELECT {_ROW} FROM tasks WHERE submitted <= ?2 AND sequence IN "  # noqa: S608 - constants
        "(SELECT sequence FROM tasks WHERE finished > ?2 ORDER BY finished LIMIT ?3) LIMIT ?1"
    )
    found += _rows(connection, later, (MOST_AROUND, span[1], 10 * MOST_AROUND))
    found += [task for task in running(connection) if task.submitted <= end]
    return [task for task in found if task.started is not None and task.started <= end]


def durations(connection: sqlite3.Connection, operation: str, begin: float, end: float, most: int) -> dict[int, list[float]]:
    """How long completed tasks of the operation ran that were submitted from `begin` to `end`, newest first, `most` at most.

    By what tells like from unlike: a number made of the name and the parameters.
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


def _rows(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> list[Ran]:
    return [_ran(row) for row in connection.execute(query, values)]


def _ran(row: tuple[Any, ...]) -> Ran:
    task_id, operation, owner, state, submitted, finished, name, started, seconds, device, kind, error, mlx, peak = row
    return Ran(
        task_id,
        operation,
        owner,
        state,
        submitted / 1e6,
        None if finished is None else finished / 1e6,
        name,
        None if started is None else micros(started) / 1e6,
        seconds,
        device,
        kind,
        None if error is None else error[:LONGEST_ERROR],
        None if mlx is None else mlx * 1e6,
        None if peak is None else peak * 1e6,
    )


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
