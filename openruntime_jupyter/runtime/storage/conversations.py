"""Conversations in the history: the answered prompts of each, by owner and name.

A trigger inserts the turn in the transaction that records its task as completed, so that a turn exists for every completed prompt,
whichever runtime finished it. Each function runs on a connection within one transaction.
"""

from __future__ import annotations

import sqlite3

from openruntime_jupyter.schemas.ai import ConversationInfo, Turn
from openruntime_jupyter.schemas.base import timestamp

TURNS_SCHEMA = """
CREATE TABLE turns (
    task_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,         -- empty for no owner: no name is empty
    conversation TEXT NOT NULL,
    submitted INTEGER NOT NULL,  -- microseconds since the epoch
    finished INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    model TEXT
) WITHOUT ROWID;
CREATE INDEX turns_conversation ON turns (owner, conversation, submitted, task_id);

CREATE VIEW answered AS
SELECT id AS task_id, ifnull(owner, '') AS owner, json_extract(parameters, '$.about.conversation') AS conversation, submitted, finished,
    json_extract(parameters, '$.messages[#-1].content') AS prompt, json_extract(document, '$.result.output.text') AS answer,
    json_extract(document, '$.result.output.model_used') AS model
FROM tasks
WHERE state = 'completed' AND id GLOB 'ai_task_*' AND json_valid(parameters) AND json_valid(document);

CREATE TRIGGER tasks_answered AFTER UPDATE OF state ON tasks WHEN new.state = 'completed' AND new.id GLOB 'ai_task_*' BEGIN
    INSERT OR IGNORE INTO turns SELECT * FROM answered
    WHERE task_id = new.id AND conversation IS NOT NULL AND prompt IS NOT NULL AND answer IS NOT NULL;
END;
CREATE TRIGGER tasks_answered_at_once AFTER INSERT ON tasks WHEN new.state = 'completed' AND new.id GLOB 'ai_task_*' BEGIN
    INSERT OR IGNORE INTO turns SELECT * FROM answered
    WHERE task_id = new.id AND conversation IS NOT NULL AND prompt IS NOT NULL AND answer IS NOT NULL;
END;
"""

GROUPS = "SELECT conversation, owner, count(*), min(submitted), max(finished) FROM turns"

TOOLS_SCHEMA = """
-- A response that only calls tools is not a turn. The prompt is the last message of the user: results of tools may follow it.
DROP VIEW answered;
CREATE VIEW answered AS
SELECT id AS task_id, ifnull(owner, '') AS owner, json_extract(parameters, '$.about.conversation') AS conversation, submitted, finished,
    (SELECT json_extract(value, '$.content') FROM json_each(parameters, '$.messages')
        WHERE json_extract(value, '$.role') = 'user' ORDER BY key DESC LIMIT 1) AS prompt,
    json_extract(document, '$.result.output.text') AS answer, json_extract(document, '$.result.output.model_used') AS model
FROM tasks
WHERE state = 'completed' AND id GLOB 'ai_task_*' AND json_valid(parameters) AND json_valid(document)
    AND json_extract(document, '$.result.output.tool_calls') IS NULL;
"""


def page(connection: sqlite3.Connection, owner: str | None, limit: int) -> list[ConversationInfo]:
    """Return up to `limit` conversations, last used first: of this owner (empty for no owner), or of all if None."""
    condition, values = ("WHERE owner = ?", [owner]) if owner is not None else ("", [])
    query = f"{GROUPS} {condition} GROUP BY owner, conversation ORDER BY max(finished) DESC, conversation LIMIT ?"
    return [_info(row) for row in connection.execute(query, [*values, limit])]


def one(connection: sqlite3.Connection, owner: str, name: str) -> tuple[ConversationInfo, list[Turn]] | None:
    """Return a conversation and its turns in the order of submission, or None if it is unknown."""
    row = connection.execute(f"{GROUPS} WHERE owner = ? AND conversation = ? GROUP BY owner, conversation", (owner, name)).fetchone()
    if row is None:
        return None
    turns = connection.execute(
        "SELECT task_id, prompt, answer, model, finished FROM turns WHERE owner = ? AND conversation = ? ORDER BY submitted, task_id",
        (owner, name),
    )
    return _info(row), [
        Turn(task_id=task_id, prompt=prompt, answer=answer, model_used=model, timestamp=timestamp(finished / 1e6))
        for task_id, prompt, answer, model, finished in turns
    ]


def delete(connection: sqlite3.Connection, owner: str, name: str) -> int:
    """Delete a conversation but not its tasks. Return the number of its turns."""
    return connection.execute("DELETE FROM turns WHERE owner = ? AND conversation = ?", (owner, name)).rowcount


def expire(connection: sqlite3.Connection, since: int) -> None:
    """Delete the conversations whose last prompt was answered before `since`, in microseconds since the epoch."""
    connection.execute(
        "DELETE FROM turns WHERE (owner, conversation) IN "
        "(SELECT owner, conversation FROM turns GROUP BY owner, conversation HAVING max(finished) < ?)",
        (since,),
    )


def _info(row: tuple[str, str, int, int, int]) -> ConversationInfo:
    name, owner, turns, started, finished = row
    return ConversationInfo(
        name=name, owner=owner or None, turns=turns, started_at=timestamp(started / 1e6), timestamp=timestamp(finished / 1e6)
    )
