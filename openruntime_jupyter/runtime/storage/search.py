"""Texts of tasks' code and parameters, in which a search looks.

Each different text is stored once, and a search reads all of them. Measured on two cores with texts of 480 characters: 0.9 ms for a
thousand different texts. SQLite's trigram index would find a text among 50,000 in 1 ms instead of 42 ms. But it takes 340 µs for each new
text, as long as the rest of an empty task, and three times the space of the texts. SQLite has it since version 3.34, which is later than
the oldest version that the supported Pythons accept.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from openruntime_jupyter.operations.parameter_summary import search_text
from openruntime_jupyter.runtime.storage.schema import STATES

STEP_TASKS = 200
"""Tasks of earlier versions that are grouped in one step."""
LONGEST_READ = 262_144
"""Maximum characters of the parameters that are read for that. Parsing them holds the interpreter lock."""

Text = tuple[int, str]
"""Id of a text, and the text."""


def with_id(text: str) -> Text:
    """Return the text with its id, a digest of 64 bits that is not 0."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True) or 1, text


def write_texts(connection: sqlite3.Connection, texts: Sequence[Text]) -> None:
    """Write the texts that tasks have. Must be in the transaction of these tasks, or else their deletion would not find a text."""
    connection.executemany(
        "INSERT OR IGNORE INTO texts SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM task_groups WHERE text = ?1)",
        texts,
    )


def ids_of(connection: sqlite3.Connection, part: str) -> str:
    """Return the ids of the texts that contain `part`, ignoring case, as a JSON array."""
    found = connection.execute("SELECT id FROM texts WHERE instr(text, ?)", (part.casefold(),))
    return json.dumps([text_id for (text_id,) in found])


def group_older(connection: sqlite3.Connection) -> bool:
    """Group some tasks of earlier versions by their texts. Return whether a further call is needed."""
    left = STEP_TASKS
    while left > 0:
        group = connection.execute("SELECT id, counter, title FROM task_groups WHERE text = 0 LIMIT 1").fetchone()
        if group is None:
            return False
        group_id, counter, title = group
        left -= _split(connection, group_id, counter, title, left)
    return True


def _split(connection: sqlite3.Connection, group: int, counter: int, title: str, most: int) -> int:
    """Move at most `most` tasks of a group without a text into groups with one. Return their number, at least 1."""
    rows = connection.execute(
        "SELECT l.sequence, l.state, CASE WHEN length(t.parameters) <= ? THEN CAST(t.parameters AS BLOB) END FROM listed AS l "
        "LEFT JOIN tasks AS t ON t.sequence = l.sequence WHERE l.task_group = ? LIMIT ?",
        (LONGEST_READ, group, most),
    ).fetchall()
    members: dict[Text, list[tuple[int, str]]] = defaultdict(list)
    for sequence, state, parameters in rows:
        members[with_id(_text_of(parameters))].append((sequence, state))
    for (text_id, text), tasks in members.items():
        connection.execute("INSERT OR IGNORE INTO task_groups (counter, title, text) VALUES (?, ?, ?)", (counter, title, text_id))
        write_texts(connection, [(text_id, text)])
        (new,) = connection.execute(
            "SELECT id FROM task_groups WHERE counter = ? AND title = ? AND text = ?", (counter, title, text_id)
        ).fetchone()
        connection.executemany("UPDATE listed SET task_group = ? WHERE sequence = ?", [(new, sequence) for sequence, _ in tasks])
        for state, number in Counter(state for _, state in tasks if state in STATES).items():
            for sign, each in ((1, new), (-1, group)):
                connection.execute(f"UPDATE task_groups SET {state} = {state} + ? WHERE id = ?", (sign * number, each))  # noqa: S608 - a state
    if len(rows) < most:
        connection.execute("DELETE FROM task_groups WHERE id = ?", (group,))
    return max(1, len(rows))


def _text_of(parameters: bytes | None) -> str:
    try:
        given = json.loads(parameters or b"null")
    except (ValueError, RecursionError):
        return ""
    return search_text(given) if isinstance(given, dict) else ""
