"""Bulk writes have the same effect as one statement per row."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator

import pytest

from openruntime_jupyter.runtime.storage.rows import TaskRecord, write_payloads, write_records
from openruntime_jupyter.runtime.storage.schema import migrate

MANY = 100
"""A group of each size, and some that go alone."""


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    found = sqlite3.connect(":memory:", isolation_level=None)
    migrate(found)
    yield found
    found.close()


def record(number: int, state: str = "pending", runtime: str = "rt_me", document: str = "{}") -> TaskRecord:
    finished = None if state in ("pending", "running") else 2
    about = f"task_{number:03}", runtime, state, "call", None, 1, finished, False, False, 0, 0
    return TaskRecord(*about, None, "call", document, {"n": number})


def states(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT id, state FROM tasks ORDER BY sequence"))


def test_bulk_insert_and_update_write_every_record(connection: sqlite3.Connection) -> None:
    records = [record(number) for number in range(MANY)]
    assert write_records(connection, [(each, False) for each in records]) == records
    assert list(states(connection)) == [each.id for each in records], "in order"
    assert connection.execute("SELECT parameters FROM tasks WHERE id = 'task_042'").fetchone() == ('{"n":42}',)
    ended = [record(number, "completed", document='{"end":1}') for number in range(MANY)]
    assert write_records(connection, [(each, True) for each in ended]) == ended
    assert connection.execute("SELECT DISTINCT document, finished, parameters IS NULL FROM tasks").fetchall() == [('{"end":1}', 2, 0)]
    assert connection.execute("SELECT pending, completed FROM counters").fetchall() == [(0, MANY)]
    for data in (b"a", b"bb"):
        write_payloads(connection, {each.id: ("cloudpickle", data) for each in records})
    assert connection.execute("SELECT size, data, count(*) FROM payloads GROUP BY 1, 2").fetchall() == [(2, b"bb", MANY)]


def test_guarded_row_does_not_affect_its_group(connection: sqlite3.Connection) -> None:
    write_records(connection, [(record(3, "failed"), False), (record(5, runtime="rt_other"), False)])
    connection.execute("INSERT INTO gone VALUES ('task_007', 1, 1, 1)")
    written = write_records(connection, [(record(number, "completed"), False) for number in range(MANY)])
    kept = {"task_003", "task_005", "task_007"}
    assert {each.id for each in written} == {f"task_{number:03}" for number in range(MANY)} - kept
    found = states(connection)
    assert (found["task_003"], found["task_005"]) == ("failed", "pending")
    assert "task_007" not in found
    assert len(found) == MANY - 1


def test_missing_known_row_is_inserted_again(connection: sqlite3.Connection) -> None:
    write_records(connection, [(record(number), False) for number in range(MANY) if number != 10])
    ended = [record(number, "completed") for number in range(MANY)]
    assert len(write_records(connection, [(each, True) for each in ended])) == MANY
    assert connection.execute("SELECT state, parameters FROM tasks WHERE id = 'task_010'").fetchone() == ("completed", '{"n":10}')


def test_unencodable_record_does_not_block_others(connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture) -> None:
    records = [record(number, document="\udcff" if number == 20 else "{}") for number in range(MANY)]
    with caplog.at_level(logging.ERROR):
        written = write_records(connection, [(each, False) for each in records])
    assert [each.id for each in written] == [each.id for each in records if each.id != "task_020"]
    assert "task_020" in caplog.text
    assert len(states(connection)) == MANY - 1
