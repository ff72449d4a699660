"""Database schema of the task history, and its migrations."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Sequence

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.storage.conversations import TOOLS_SCHEMA, TURNS_SCHEMA

TASKS_SCHEMA = """
CREATE TABLE tasks (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    runtime TEXT NOT NULL,
    state TEXT NOT NULL,
    operation TEXT NOT NULL,
    owner TEXT,
    submitted INTEGER NOT NULL,  -- microseconds since the epoch, as all times here
    finished INTEGER,            -- NULL until the state is terminal
    durable INTEGER NOT NULL,    -- asynchronous: another runtime may take it over
    embedded INTEGER NOT NULL,   -- hosted by a kernel: no other runtime may take it over
    attempt INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    document TEXT NOT NULL,      -- the Task as JSON, without its parameters and its transient fields
    parameters TEXT              -- JSON; written once
);
CREATE INDEX tasks_submitted ON tasks (submitted);
CREATE INDEX tasks_state ON tasks (state, submitted);
CREATE INDEX tasks_operation ON tasks (operation, submitted);
CREATE INDEX tasks_owner ON tasks (owner, submitted) WHERE owner IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (finished) WHERE finished IS NOT NULL;

CREATE TABLE counters (
    state TEXT NOT NULL,
    operation TEXT NOT NULL,
    owner NOT NULL,              -- the number 0 for no owner: no name equals it
    number INTEGER NOT NULL,
    PRIMARY KEY (state, operation, owner)
) WITHOUT ROWID;

CREATE TABLE outputs (task_id TEXT NOT NULL UNIQUE, stored INTEGER NOT NULL, document TEXT NOT NULL);

CREATE TABLE payloads (
    task_id TEXT NOT NULL UNIQUE,
    stored INTEGER NOT NULL,
    size INTEGER NOT NULL,
    encoding TEXT NOT NULL,
    file TEXT,                   -- its name in the folder `payloads`, or NULL where `data` has the bytes
    data BLOB
);
CREATE INDEX payloads_size ON payloads (size);
CREATE INDEX payloads_file ON payloads (file) WHERE file IS NOT NULL;

-- Tasks deleted recently: they are not inserted again, and a list that is being paged continues after them.
CREATE TABLE gone (id TEXT PRIMARY KEY, submitted INTEGER NOT NULL, sequence INTEGER NOT NULL, deleted INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE keys (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    task_id TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    runtime TEXT NOT NULL,
    stored INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;

-- Always empty: writing and deleting a row here checks that the disk has space.
CREATE TABLE probe (filler BLOB);

CREATE TRIGGER tasks_inserted AFTER INSERT ON tasks BEGIN
    INSERT OR IGNORE INTO counters VALUES (new.state, new.operation, ifnull(new.owner, 0), 0);
    UPDATE counters SET number = number + 1 WHERE state = new.state AND operation = new.operation AND owner = ifnull(new.owner, 0);
END;
CREATE TRIGGER tasks_moved AFTER UPDATE OF state ON tasks WHEN old.state <> new.state BEGIN
    UPDATE counters SET number = number - 1 WHERE state = old.state AND operation = old.operation AND owner = ifnull(old.owner, 0);
    INSERT OR IGNORE INTO counters VALUES (new.state, new.operation, ifnull(new.owner, 0), 0);
    UPDATE counters SET number = number + 1 WHERE state = new.state AND operation = new.operation AND owner = ifnull(new.owner, 0);
END;
CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks BEGIN
    UPDATE counters SET number = number - 1 WHERE state = old.state AND operation = old.operation AND owner = ifnull(old.owner, 0);
    DELETE FROM outputs WHERE task_id = old.id;
    DELETE FROM payloads WHERE task_id = old.id;
    INSERT OR REPLACE INTO gone VALUES (old.id, old.submitted, old.sequence, CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
END;
"""

METRICS_SCHEMA = """
-- Metrics over time, in buckets of `tier` seconds, one row per bucket and runtime. The mean is total / weight. Weights are seconds, or
-- tasks for metrics with one value per task.
CREATE TABLE metrics (
    tier INTEGER NOT NULL,
    start INTEGER NOT NULL,      -- seconds since the epoch, a multiple of `tier`
    runtime TEXT NOT NULL,
    began REAL NOT NULL,         -- the first and last moment within the bucket that the runtime measured
    ended REAL NOT NULL,
    gpu_utilization_low REAL, gpu_utilization_total REAL, gpu_utilization_high REAL, gpu_utilization_weight REAL,
    gpu_memory_low REAL, gpu_memory_total REAL, gpu_memory_high REAL, gpu_memory_weight REAL,
    memory_usage_low REAL, memory_usage_total REAL, memory_usage_high REAL, memory_usage_weight REAL,
    cpu_utilization_low REAL, cpu_utilization_total REAL, cpu_utilization_high REAL, cpu_utilization_weight REAL,
    active_tasks_low REAL, active_tasks_total REAL, active_tasks_high REAL, active_tasks_weight REAL,
    pending_tasks_low REAL, pending_tasks_total REAL, pending_tasks_high REAL, pending_tasks_weight REAL,
    worker_memory_low REAL, worker_memory_total REAL, worker_memory_high REAL, worker_memory_weight REAL,
    queue_time_low REAL, queue_time_total REAL, queue_time_high REAL, queue_time_weight REAL,
    run_time_low REAL, run_time_total REAL, run_time_high REAL, run_time_weight REAL,
    mlx_memory_low REAL, mlx_memory_total REAL, mlx_memory_high REAL, mlx_memory_weight REAL,
    completed_tasks_total REAL,
    failed_tasks_total REAL,
    cancelled_tasks_total REAL,
    timed_out_tasks_total REAL,
    interrupted_tasks_total REAL,
    PRIMARY KEY (tier, start, runtime)
) WITHOUT ROWID;
"""

PROVENANCE_SCHEMA = """
ALTER TABLE tasks ADD COLUMN notebook TEXT;
-- The name, or else the operation, with its case folded: what a search by name looks in.
ALTER TABLE tasks ADD COLUMN title TEXT NOT NULL DEFAULT '';
UPDATE tasks SET title = casefold(
    ifnull(nullif(json_extract(CASE WHEN json_valid(document) THEN document ELSE '{}' END, '$.name'), ''), operation)
);
-- Both have the title, so that a search reads no rows: the columns follow the parameters, which may be large.
CREATE INDEX tasks_notebook ON tasks (notebook, submitted, title) WHERE notebook IS NOT NULL;
CREATE INDEX tasks_title ON tasks (submitted, title);
"""

APPLICATION_ID = 0x4F52544A
"""SQLite's `application_id` of the file; files of versions below `IDENTIFIED` have 0."""

LARGEST_VERSION = 100
"""Largest plausible version of a newer release."""

STATES = ("pending", "running", "completed", "failed", "cancelled", "timed_out", "interrupted")
"""States of tasks, which are also the columns of their numbers in `counters` and `task_groups`."""


def _numbers(template: str) -> str:
    """Return the template once for each state, which replaces {0}."""
    return ", ".join(template.format(state) for state in STATES)


_NUMBERS = _numbers("{0} INTEGER NOT NULL DEFAULT 0")
_SUMS = _numbers("sum(state = '{0}')")
_COUNTER = "c.operation = {0}.operation AND c.owner = ifnull({0}.owner, 0) AND c.notebook = ifnull({0}.notebook, 0)"
_ITS_COUNTER = "id = (SELECT counter FROM listed WHERE sequence = old.sequence)"
_ITS_GROUP = "id = (SELECT task_group FROM listed WHERE sequence = old.sequence)"
_MOVED = _numbers("{0} = {0} + (new.state = '{0}') - (old.state = '{0}')")
_ADDED = _numbers("{0} = {0} + (new.state = '{0}')")
_REMOVED = _numbers("{0} = {0} - (old.state = '{0}')")

LISTS_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};

-- The order of tasks in lists is that of `sequence`, which a changed clock does not affect.
DROP INDEX tasks_submitted;
DROP INDEX tasks_owner;
DROP INDEX tasks_notebook;
DROP INDEX tasks_title;
DROP TRIGGER tasks_inserted;
DROP TRIGGER tasks_moved;
DROP TRIGGER tasks_deleted;
DROP TABLE counters;

CREATE TABLE counters (
    id INTEGER PRIMARY KEY,
    operation TEXT NOT NULL,
    owner NOT NULL,              -- the number 0 for no owner: no name equals it
    notebook NOT NULL,           -- the number 0 for no notebook
    {_NUMBERS},
    UNIQUE (operation, owner, notebook)
);

-- Tasks that no filter but the state distinguishes. Not one table with the former, because there can be many titles.
CREATE TABLE task_groups (
    id INTEGER PRIMARY KEY,
    counter INTEGER NOT NULL,
    title TEXT NOT NULL,
    {_NUMBERS},
    UNIQUE (title, counter)
);
CREATE INDEX task_groups_counter ON task_groups (counter);

-- The columns that lists search, because the rows of `tasks` are large.
CREATE TABLE listed (sequence INTEGER PRIMARY KEY, counter INTEGER NOT NULL, task_group INTEGER NOT NULL, state TEXT NOT NULL);
CREATE INDEX listed_group ON listed (task_group, state);

INSERT INTO counters SELECT NULL, operation, ifnull(owner, 0), ifnull(notebook, 0), {_SUMS} FROM tasks GROUP BY 2, 3, 4;
INSERT INTO task_groups SELECT NULL, c.id, title, {_SUMS} FROM tasks AS t CROSS JOIN counters AS c ON {_COUNTER.format("t")} GROUP BY 2, 3;
INSERT INTO listed SELECT t.sequence, c.id, g.id, t.state FROM tasks AS t CROSS JOIN counters AS c ON {_COUNTER.format("t")}
CROSS JOIN task_groups AS g ON g.title = t.title AND g.counter = c.id;

CREATE TRIGGER tasks_inserted AFTER INSERT ON tasks BEGIN
    INSERT OR IGNORE INTO counters (operation, owner, notebook) VALUES (new.operation, ifnull(new.owner, 0), ifnull(new.notebook, 0));
    INSERT OR IGNORE INTO task_groups (counter, title) SELECT id, new.title FROM counters AS c WHERE {_COUNTER.format("new")};
    INSERT INTO listed SELECT new.sequence, c.id, g.id, new.state FROM counters AS c
        CROSS JOIN task_groups AS g ON g.title = new.title AND g.counter = c.id WHERE {_COUNTER.format("new")};
    UPDATE counters SET {_ADDED} WHERE id = (SELECT counter FROM listed WHERE sequence = new.sequence);
    UPDATE task_groups SET {_ADDED} WHERE id = (SELECT task_group FROM listed WHERE sequence = new.sequence);
END;
CREATE TRIGGER tasks_moved AFTER UPDATE OF state ON tasks WHEN old.state <> new.state BEGIN
    UPDATE counters SET {_MOVED} WHERE {_ITS_COUNTER};
    UPDATE task_groups SET {_MOVED} WHERE {_ITS_GROUP};
    UPDATE listed SET state = new.state WHERE sequence = old.sequence;
END;
CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks BEGIN
    UPDATE counters SET {_REMOVED} WHERE {_ITS_COUNTER};
    UPDATE task_groups SET {_REMOVED} WHERE {_ITS_GROUP};
    DELETE FROM listed WHERE sequence = old.sequence;
    DELETE FROM outputs WHERE task_id = old.id;
    DELETE FROM payloads WHERE task_id = old.id;
    INSERT OR REPLACE INTO gone VALUES (old.id, old.submitted, old.sequence, CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
END;
"""  # noqa: S608 - constants

_NAMES = ", ".join(STATES)
_NONE_LEFT = f"{' + '.join(STATES)} = 0"

SEARCH_SCHEMA = f"""
-- The text of a task's code and parameters, NULL for tasks of earlier versions. `search.py` groups those later, because reading the
-- parameters of a million tasks would delay a start.
ALTER TABLE tasks ADD COLUMN text INTEGER;

-- The id is a digest of the text. Tasks with the same work share a text.
CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);

DROP TRIGGER tasks_inserted;
DROP TRIGGER tasks_moved;
DROP TRIGGER tasks_deleted;
DROP INDEX task_groups_counter;
ALTER TABLE task_groups RENAME TO old_groups;

-- Tasks that no filter but the state distinguishes.
CREATE TABLE task_groups (
    id INTEGER PRIMARY KEY,
    counter INTEGER NOT NULL,
    title TEXT NOT NULL,
    text INTEGER NOT NULL,       -- 0: not known yet
    {_NUMBERS},
    UNIQUE (title, counter, text)
);
INSERT INTO task_groups SELECT id, counter, title, 0, {_NAMES} FROM old_groups;
DROP TABLE old_groups;
CREATE INDEX task_groups_counter ON task_groups (counter);
CREATE INDEX task_groups_text ON task_groups (text);

CREATE TRIGGER tasks_inserted AFTER INSERT ON tasks BEGIN
    INSERT OR IGNORE INTO counters (operation, owner, notebook) VALUES (new.operation, ifnull(new.owner, 0), ifnull(new.notebook, 0));
    INSERT OR IGNORE INTO task_groups (counter, title, text)
        SELECT id, new.title, ifnull(new.text, 0) FROM counters AS c WHERE {_COUNTER.format("new")};
    INSERT INTO listed SELECT new.sequence, c.id, g.id, new.state FROM counters AS c
        CROSS JOIN task_groups AS g ON g.title = new.title AND g.counter = c.id AND g.text = ifnull(new.text, 0)
        WHERE {_COUNTER.format("new")};
    UPDATE counters SET {_ADDED} WHERE id = (SELECT counter FROM listed WHERE sequence = new.sequence);
    UPDATE task_groups SET {_ADDED} WHERE id = (SELECT task_group FROM listed WHERE sequence = new.sequence);
END;
CREATE TRIGGER tasks_moved AFTER UPDATE OF state ON tasks WHEN old.state <> new.state BEGIN
    UPDATE counters SET {_MOVED} WHERE {_ITS_COUNTER};
    UPDATE task_groups SET {_MOVED} WHERE {_ITS_GROUP};
    UPDATE listed SET state = new.state WHERE sequence = old.sequence;
END;
CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks BEGIN
    UPDATE counters SET {_REMOVED} WHERE {_ITS_COUNTER};
    UPDATE task_groups SET {_REMOVED} WHERE {_ITS_GROUP};
    DELETE FROM task_groups WHERE {_ITS_GROUP} AND {_NONE_LEFT};
    DELETE FROM listed WHERE sequence = old.sequence;
    DELETE FROM outputs WHERE task_id = old.id;
    DELETE FROM payloads WHERE task_id = old.id;
    INSERT OR REPLACE INTO gone VALUES (old.id, old.submitted, old.sequence, CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
END;
-- A deleted task leaves no code behind.
CREATE TRIGGER task_groups_deleted AFTER DELETE ON task_groups BEGIN
    DELETE FROM texts WHERE id = old.text AND NOT EXISTS (SELECT 1 FROM task_groups WHERE text = old.text);
END;
"""  # noqa: S608 - constants

MIGRATIONS: Sequence[str] = (TASKS_SCHEMA, METRICS_SCHEMA, TURNS_SCHEMA, PROVENANCE_SCHEMA, LISTS_SCHEMA, SEARCH_SCHEMA, TOOLS_SCHEMA)
"""The script at index n makes version n + 1 of version n. Released ones are never edited."""
IDENTIFIED = MIGRATIONS.index(LISTS_SCHEMA) + 1
"""First version with an `application_id`."""

_PARTS = """
SELECT m.type, m.name, CASE WHEN m.type <> 'table' THEN sql END, p.name FROM sqlite_master AS m
LEFT JOIN pragma_table_info(m.name) AS p ON m.type = 'table' WHERE m.name NOT LIKE 'sqlite_%'
"""

Parts = set[tuple[str, str, str | None, str | None]]


class BadSchema(sqlite3.DatabaseError):
    """Error for a file that is not a history, or a history without some of its tables."""


class SchemaTooNew(StorageUnavailable):
    """Error for a file that a newer release wrote and this release must not change."""

    def __init__(self, found: int, known: int, path: object) -> None:
        super().__init__(
            f"The history {path} has schema version {found}, and this release of openruntime-jupyter supports versions up to {known}: "
            "upgrade it, or choose another `data_dir`. Until then tasks are not recorded, and asynchronous tasks are rejected.",
            retry_after=None,
        )


def version(connection: sqlite3.Connection) -> int:
    """Return the schema version of a file; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def refuse_newer(connection: sqlite3.Connection, path: object) -> None:
    """Raise `SchemaTooNew` if a newer release wrote the file, and `BadSchema` if another program did."""
    found = version(connection)
    if 0 <= found <= len(MIGRATIONS):
        return
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID or not 0 <= found <= LARGEST_VERSION:
        raise BadSchema("the file belongs to another program, or its header is damaged")
    raise SchemaTooNew(found, len(MIGRATIONS), path)


def check_parts(connection: sqlite3.Connection) -> None:
    """Raise `BadSchema` unless the file has the tables, indexes, triggers and views of its version. An empty file has none."""
    found = version(connection)
    identity = connection.execute("PRAGMA application_id").fetchone()[0]
    parts: Parts = set(connection.execute(_PARTS))
    if identity != (APPLICATION_ID if found >= IDENTIFIED else 0) or (found == 0 and parts):
        raise BadSchema("the file belongs to another program")
    if missing := _expected_parts(found) - parts:
        kind, name, *_ = min(missing, key=str)
        raise BadSchema(f"its {kind} {name} is missing or was changed")


@functools.cache
def _expected_parts(found: int) -> Parts:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:found])
        return set(connection.execute(_PARTS))


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] | None = None) -> None:
    """Migrate the file to the newest version in one transaction."""
    steps = MIGRATIONS if migrations is None else migrations
    if version(connection) == len(steps):
        return
    connection.create_function("casefold", 1, lambda text: str(text).casefold())
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in steps[version(connection) :]:
            for statement in statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def statements(script: str) -> list[str]:
    """Split a script into statements. `executescript` cannot be used because it commits before the first one."""
    found, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text.strip())
            text = ""
    return found
