"""Write-behind buffer: the newest record, output and payload of each task, kept until they are on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.permissions import close_to_others
from openruntime_jupyter.runtime.storage.bulk_writes import Row, log_data_error, write_payloads, write_records
from openruntime_jupyter.runtime.storage.rows import TaskRecord, record_of, text_of
from openruntime_jupyter.runtime.storage.writer import Job
from openruntime_jupyter.schemas.tasks import Task, TaskOutput

log = logging.getLogger(__name__)

DELAY_SECONDS = 0.05
RETRY_SECONDS = 1.0
MOST_RECORDS = 500
"""Tasks described in one loop iteration, which takes a few milliseconds."""
SMALL_PAYLOAD = 4096
"""Largest payload in bytes that is written together with others."""
MOST_BATCHES = 4
"""Batches in flight at once. If the disk is slow, further items stay in this buffer, where newer versions replace older ones."""

Describe = Callable[[], Task]
Payload = tuple[str, "bytes | Path"]
Item = TypeVar("Item")


class PendingWrites(Generic[Item]):
    """Items of one type that are not on disk yet, by task."""

    def __init__(self) -> None:
        self.waiting: dict[str, Item] = {}
        self.in_flight: list[dict[str, Item]] = []
        self.refused: set[str] = set()
        """Tasks whose last write failed."""

    def find(self, task_id: str) -> Item | None:
        """Return the newest version that is not on disk yet, or None."""
        for place in (self.waiting, *reversed(self.in_flight)):
            if task_id in place:
                return place[task_id]
        return None

    def take(self, most: int | None = None) -> dict[str, Item]:
        """Remove and return the oldest waiting items, at most `most`."""
        taken = dict(islice(self.waiting.items(), most))
        for task_id in taken:
            del self.waiting[task_id]
        return taken

    def committed(self, batch: dict[str, Item], *, kept: bool) -> None:
        """End a batch. If the write failed, its items wait again, unless a newer version already does."""
        self.in_flight = [other for other in self.in_flight if other is not batch]
        if kept:
            self.refused.difference_update(batch)
        else:
            self.refused.update(batch)
            self.waiting = {**batch, **self.waiting}

    def drop(self, task_id: str) -> None:
        """Discard all items of a task."""
        for place in (self.waiting, *self.in_flight):
            place.pop(task_id, None)
        self.refused.discard(task_id)


class WriteBehind:
    """Write-behind buffer that runs on the loop and passes jobs to `submit`; failed writes are retried every second.

    `known` holds the unfinished tasks that have a row on disk. `failing()` returns whether writing fails now.
    """

    def __init__(self, runtime: str, embedded: bool, submit: Callable[[list[Job]], None], failing: Callable[[], bool]) -> None:
        self.records: PendingWrites[Describe] = PendingWrites()
        self.outputs: PendingWrites[TaskOutput] = PendingWrites()
        self.payloads: PendingWrites[Payload] = PendingWrites()
        self.known: set[str] = set()
        self._runtime = runtime
        self._embedded = embedded
        self._submit = submit
        self._failing = failing
        self._batches: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pending_writes(self) -> tuple[PendingWrites[Any], ...]:
        """The buffers in the order in which they are written: a task's output and payload never come after its final record."""
        return self.payloads, self.outputs, self.records

    @property
    def waiting(self) -> int:
        """Number of items that are not submitted yet."""
        return sum(len(pending.waiting) for pending in self.pending_writes)

    @property
    def refused(self) -> bool:
        """True if any item's last write failed."""
        return any(pending.refused for pending in self.pending_writes)

    def add(self, pending: PendingWrites[Item], task_id: str, item: Item) -> None:
        """Write `item` soon, in place of an older one of the same task."""
        pending.waiting[task_id] = item
        self.schedule()

    def schedule(self) -> None:
        """Schedule the next write: soon or, while writing fails, within a second."""
        if self._timer is None:
            many = len(self.records.waiting) >= MOST_RECORDS
            delay = RETRY_SECONDS if self._failing() else 0.0 if many else DELAY_SECONDS
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def stop(self) -> None:
        """Cancel the scheduled write."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self, task_id: str) -> None:
        """Discard everything about a deleted task."""
        for pending in self.pending_writes:
            pending.drop(task_id)
        self.known.discard(task_id)

    def remember(self, records: Iterable[TaskRecord]) -> None:
        """Update `known` from records that were written."""
        for record in records:
            if record.finished is not None:
                self.known.discard(record.id)
            else:
                self.known.add(record.id)

    def attachment_jobs(self, task_id: str) -> list[Job]:
        """Return the jobs for a task's output and payload, which must be on disk no later than its final record."""
        jobs = []
        if task_id in self.payloads.waiting:
            jobs.append(self._start_batch(self.payloads, {task_id: self.payloads.waiting.pop(task_id)}, _write_payloads))
        if task_id in self.outputs.waiting:
            jobs.append(self._start_batch(self.outputs, {task_id: self.outputs.waiting.pop(task_id)}, _write_outputs))
        return jobs

    async def flush(self, seconds: float) -> None:
        """Submit everything that waits, and wait up to `seconds` until each write has succeeded or failed."""
        rounds = 1 + len(self.records.waiting) // MOST_RECORDS
        for _ in range(rounds):
            self._hand_over()
            await asyncio.sleep(0)
        if self._batches:
            await asyncio.wait(tuple(self._batches), timeout=seconds)

    def _fire(self) -> None:
        self._timer = None
        if self._failing():
            self._touch_files()
            if not self.waiting:
                self._submit([Job(probe, lambda result, error: None)])
        if len(self._batches) >= MOST_BATCHES:
            # The first batch that ends schedules the next write.
            return
        self._hand_over()
        if self._failing() or self.waiting:
            self.schedule()

    def _hand_over(self) -> None:
        jobs = [self._start_batch(self.payloads, some, _write_payloads) for some in _parted(self.payloads.take())]
        if outputs := self.outputs.take():
            jobs.append(self._start_batch(self.outputs, outputs, _write_outputs))
        described: dict[str, tuple[Describe, Task, bool]] = {}
        for task_id, describe in self.records.take(MOST_RECORDS).items():
            try:
                described[task_id] = describe, describe(), task_id in self.known
            except Exception:
                log.exception("Cannot write the record of %s: describing it failed", task_id)
        if described:
            tasks = [(task, known) for _, task, known in described.values()]
            batch = {task_id: describe for task_id, (describe, _, _) in described.items()}
            jobs.append(self._start_batch(self.records, batch, lambda connection, _: self._write_records(connection, tasks)))
        if jobs:
            self._submit(jobs)

    def _write_records(self, connection: sqlite3.Connection, tasks: list[tuple[Task, bool]]) -> list[TaskRecord]:
        records = []
        for task, known in tasks:
            try:
                records.append((record_of(task, self._runtime, self._embedded), known))
            except Exception as error:
                log_data_error(task.task_id, error)
        return write_records(connection, records)

    def _start_batch(
        self, pending: PendingWrites[Item], items: dict[str, Item], work: Callable[[sqlite3.Connection, dict[str, Item]], Any]
    ) -> Job:
        """Return a job that writes `items`; they wait again if it fails."""
        future = asyncio.get_running_loop().create_future()
        self._batches.add(future)
        # `drop` changes this copy; the writer thread uses the other.
        batch = dict(items)
        pending.in_flight.append(batch)

        def done(result: Any, error: BaseException | None) -> None:
            self._batches.discard(future)
            if error is not None and not isinstance(error, StorageUnavailable):
                log.error("Buffered records are lost: writing them failed", exc_info=error)
            pending.committed(batch, kept=not isinstance(error, StorageUnavailable))
            if error is None and isinstance(result, list):
                self.remember(result)
            if self.waiting or self._failing():
                self.schedule()
            if not future.done():
                future.set_result(None)

        return Job(lambda connection: work(connection, items), done)

    def _touch_files(self) -> None:
        # Otherwise another runtime's sweep would delete a payload as an orphan after the disk was full for an hour.
        for _, data in self.payloads.waiting.values():
            if isinstance(data, Path):
                with contextlib.suppress(OSError):
                    os.utime(data)


def _parted(payloads: dict[str, Payload]) -> list[dict[str, Payload]]:
    """Group small payloads, and put each large one in a group alone, so that a full disk fails only that one."""
    small = {task_id: item for task_id, item in payloads.items() if isinstance(item[1], bytes) and len(item[1]) <= SMALL_PAYLOAD}
    large = [{task_id: item} for task_id, item in payloads.items() if task_id not in small]
    return [small, *large] if small else large


def now_micros() -> int:
    """Return the current time in microseconds since the epoch."""
    return time.time_ns() // 1000


def probe(connection: sqlite3.Connection) -> None:
    """Write and delete a row, to check that the disk has space."""
    connection.execute("INSERT INTO probe VALUES (zeroblob(65536))")
    connection.execute("DELETE FROM probe")


def _write_outputs(connection: sqlite3.Connection, outputs: dict[str, TaskOutput]) -> None:
    for task_id, output in outputs.items():
        try:
            connection.execute(
                "INSERT OR REPLACE INTO outputs (task_id, stored, document) VALUES (?, ?, ?)", (task_id, now_micros(), text_of(output))
            )
        except Exception as error:
            log_data_error(task_id, error)


def _write_payloads(connection: sqlite3.Connection, payloads: dict[str, Payload]) -> None:
    rows: list[Row] = []
    for task_id, (encoding, data) in payloads.items():
        try:
            if isinstance(data, Path):
                close_to_others(data)
                rows.append((task_id, now_micros(), data.stat().st_size, encoding, data.name, None))
            else:
                rows.append((task_id, now_micros(), len(data), encoding, None, data))
        except Exception as error:
            log_data_error(task_id, error)
    write_payloads(connection, rows)
