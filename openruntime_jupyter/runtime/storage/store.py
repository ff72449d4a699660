"""Task history of a user on disk, shared by all runtimes on the machine.

One thread writes and several read; the code here runs on the runtime's loop and never blocks it. See `connection.py` for the file, its
damage and its permissions, `writer.py` for the threads, and `rows.py` for rows and guards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from openruntime_jupyter.errors import Stopping, StorageUnavailable
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.metrics.counters import Buckets
from openruntime_jupyter.runtime.permissions import private_folder
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import queries, retention, rows
from openruntime_jupyter.runtime.storage.connection import HistoryFile, unavailable
from openruntime_jupyter.runtime.storage.metrics import MetricColumns, MetricsWriteBehind, read, window
from openruntime_jupyter.runtime.storage.rows import Payload, TaskRecord, now_micros, record_of
from openruntime_jupyter.runtime.storage.schema import SchemaTooNew
from openruntime_jupyter.runtime.storage.search import group_older
from openruntime_jupyter.runtime.storage.writer import Job, JobQueue, Outcome, Reader, Writer, resolve, settle
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskState

log = logging.getLogger(__name__)

READ_AFTER_SECONDS = 2.0
"""Maximum wait of a list for pending writes; with a slow disk the list is stale rather than blocked."""
READERS = 2
"""Threads for quick queries. They connect at their first query."""
SLOW_READERS = 1 if (os.cpu_count() or 1) <= 2 else 2
"""Threads for other queries. Two would occupy both cores of a small machine."""
QUICK_OFFSET = 1_000
"""Largest offset of a quick list."""
MOST_LISTED = 10_000
VOLATILE_TASKS = 10_000
"""Finished tasks kept in memory if no file can be used."""
DELAY_SECONDS = 0.05
RETRY_SECONDS = 1.0
GROUPING_PAUSE = 0.02
"""Seconds between two steps that group tasks of earlier versions, for other writes."""
MOST_RECORDS = 500
"""Tasks described in one loop iteration, which takes a few milliseconds."""
SMALL_PAYLOAD = 4096
"""Largest payload in bytes that is written together with others."""
MOST_BATCHES = 4
"""Batches in flight at once. If the disk is slow, further items stay in the buffer, where newer versions replace older ones."""

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Describe = Callable[[], Task]


class History:
    """Tasks of this user, including those of other runtimes.

    Call `open()` once, then all methods on one loop, then `close()`; later calls raise `Stopping`. While writing fails, `problem`
    holds the reason and the fix; it is cleared once writing works again. If a newer release wrote the file, `problem` stays set and the
    history is kept in memory only. `on_replaced()` is called on the loop after a new file has replaced a damaged or removed one: it writes
    the live tasks again.
    """

    def __init__(self, settings: Settings, runtime_id: str) -> None:
        self._settings = settings
        self._me = runtime_id
        self._payload_folder = settings.payloads
        self._runtimes = settings.runtimes
        facts = {
            "runtime": runtime_id,
            "pid": os.getpid(),
            "label": settings.label,
            "embedded": settings.embedded,
            "started": iso(time.time()),
        }
        self._lock = locks.RuntimeLock(self._runtimes, runtime_id, facts)
        self._file = HistoryFile(settings.data_dir, settings.history_durability)
        # The lock must be held before the first write, or another runtime would take the tasks over.
        self._writer = Writer(self._file, self._lock.acquire, partial(self._deliver, self._settle_written))
        self._quick, self._slow = self._make_readers(READERS), self._make_readers(SLOW_READERS)
        self._behind = WriteBehind(runtime_id, settings.embedded, self._submit, lambda: self._problem is not None)
        self._metrics = MetricsWriteBehind(runtime_id, self._submit)
        self._outbox: list[Job] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None
        self._read_problem: str | None = None
        self._refusal: str | None = None
        self._closed = False
        self._replaced = 0
        self.on_replaced: Callable[[], None] = lambda: None

    def _make_readers(self, number: int) -> list[Reader]:
        jobs: JobQueue = SimpleQueue()
        return [Reader(self._file, partial(self._deliver, self._settle_read), jobs) for _ in range(number)]

    @property
    def problem(self) -> str | None:
        """Reason for failing writes or reads and how to fix it; None if both work."""
        return self._refusal or self._problem or self._read_problem

    @property
    def notice(self) -> str | None:
        """Message about damage or replacement of the file since it was opened; None if neither happened."""
        return self._file.notice

    def open(self) -> list[Task]:
        """Open the file and take over the tasks of dead runtimes. Return the tasks to queue here, oldest first.

        Blocks; called once, before any other method. Raises `StorageUnavailable` if the file cannot be written. The history is usable
        even then: `problem` is set, asynchronous commits are rejected, and writing starts once it works.
        """
        self._writer.start()
        for reader in (*self._quick, *self._slow):
            reader.start()
        try:
            private_folder(self._payload_folder)
            # Tasks with this runtime's id are from an earlier run, because this one has just started.
            tasks: list[Task] = self._writer.call(partial(self._take_over, is_alive=self._is_other_alive))
            locks.remove_dead_locks(self._runtimes)
        except StorageUnavailable:
            raise
        except OSError as error:
            folder = self._settings.data_dir
            failure = StorageUnavailable(f"Cannot use the data folder {folder} ({error}): make it writable for this user and no other")
            self._fail(failure)
            raise failure from error
        except Exception as error:  # whatever is wrong with the file, the runtime must start
            failure = unavailable(error, self._file.path)
            self._fail(failure)
            raise failure from error
        self._behind.known.update(task.task_id for task in tasks)
        return tasks

    async def take_over(self) -> list[Task]:
        """Take over the tasks of runtimes that died since `open`. Return the tasks to queue here.

        A runtime calls it periodically; otherwise the tasks of a dead kernel would stay listed as running.
        """
        self._check_open()
        tasks = await self._write(
            partial(self._take_over, is_alive=lambda runtime: runtime == self._me or locks.is_alive(self._runtimes, runtime))
        )
        self._behind.known.update(task.task_id for task in tasks)
        return tasks

    def _take_over(self, connection: sqlite3.Connection, is_alive: Callable[[str], bool]) -> list[Task]:
        if self._file.volatile:
            return []
        return rows.take_over(connection, self._me, self._settings.embedded, is_alive, time.time())

    def _is_other_alive(self, runtime: str) -> bool:
        return runtime != self._me and locks.is_alive(self._runtimes, runtime)

    # Writes

    async def commit(self, task: Task) -> None:
        """Write the task with its pending output and payload, and return when they are on disk.

        Raises `StorageUnavailable` if the write fails, and `TaskConflict` if this runtime may not change the row: another runtime has
        taken the task over, it was purged, or it already has another final state.
        """
        self._check_writable()
        record = self._record(task)
        known = task.task_id in self._behind.known
        before = self._behind.attachment_jobs(task.task_id)
        await self._write(lambda connection: rows.write_or_raise(connection, record, known), before)
        self._behind.remember([record])

    async def commit_new(self, task: Task, key: tuple[str, str, str]) -> tuple[str, str] | None:
        """Write a new task under `key` (owner, idempotency key, fingerprint), and return when both are on disk.

        If the key already belongs to a task, write nothing and return its id and fingerprint. Raises the errors of `commit`.
        """
        self._check_writable()
        record = self._record(task)
        earlier = await self._write(lambda connection: queries.write_new(connection, record, key, now_micros()))
        if earlier is None:
            self._behind.remember([record])
        return earlier

    async def commit_all(self, tasks: list[Task], key: tuple[str, str, str] | None = None) -> set[str]:
        """Write new tasks in one transaction and wait until they are on disk. Return the ids of the tasks that a guard rejected.

        `key` is (owner, idempotency key, fingerprint) and is stored for the first task. Raises `StorageUnavailable` if the write fails,
        and `TaskConflict` if the key belongs to other tasks; nothing is written then.
        """
        self._check_writable()
        written = await self._write(
            lambda connection: queries.write_all(connection, [self._record(task) for task in tasks], key, now_micros())
        )
        self._behind.remember(written)
        return {task.task_id for task in tasks}.difference(record.id for record in written)

    def _record(self, task: Task) -> TaskRecord:
        return record_of(task, self._me, self._settings.embedded)

    def write_behind(self, task_id: str, describe: Describe) -> None:
        """Write the task as `describe()` returns it within 50 ms; never raises, and retries while the disk fails."""
        if not self._closed:
            self._behind.add(self._behind.records, task_id, describe)

    def put_output(self, task_id: str, output: TaskOutput) -> None:
        """Write the task's output soon, and no later than a committed final record."""
        if not self._closed:
            self._behind.add(self._behind.outputs, task_id, output)

    def put_payload(self, task_id: str, encoding: str, data: bytes | Path) -> None:
        """Write the task's opaque result soon, and no later than a committed final record.

        A Path must be a file in the folder `payloads` of the data folder, otherwise `ValueError` is raised. The history then owns it.
        """
        if isinstance(data, Path) and data.parent != self._payload_folder:
            raise ValueError(f"{data} is not in {self._payload_folder}")
        if not self._closed:
            self._behind.add(self._behind.payloads, task_id, (encoding, data))

    def put_metrics(self, buckets: Buckets) -> None:
        """Add these to the metrics of this runtime soon; buckets of a failed write are written with the next ones. Never raises."""
        if not self._closed:
            self._metrics.add(buckets)

    async def delete(self, task_id: str) -> None:
        """Delete a task, its output and payload; unknown ids are ignored. Raises `TaskConflict` if the task is not finished."""
        files = await self.change(lambda connection: queries.delete(connection, task_id))
        self._behind.drop(task_id)
        await self._remove(files)

    async def change(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run `work` on the writer's thread after flushing pending writes; its changes are on disk when this returns."""
        self._check_open()
        await self._flush()
        return await self._write(work)

    async def remember_key(self, owner: str | None, key: str, task_id: str | None, fingerprint: str = "") -> tuple[str, str] | None:
        """Store an idempotency key for a day, or return the (task id, fingerprint) it belongs to; with None as `task_id` only look."""
        self._check_open()
        return await self._write(
            lambda connection: queries.remember_key(connection, owner or "", key, task_id, fingerprint, self._me, now_micros())
        )

    # Reads

    async def get(self, task_id: str, parameters: bool = True) -> Task | None:
        """Return the current task, or None if it is unknown. Raises `StorageUnavailable` if reading fails.

        Without its parameters, which may be megabytes, it costs little.
        """
        self._check_open()
        describe = self._behind.records.find(task_id)
        if describe is not None:
            task = describe()
            return task if parameters else task.model_copy(update={"parameters": None})
        return await self._read(lambda connection: queries.one(connection, task_id, self._me, parameters))

    async def get_output(self, task_id: str) -> TaskOutput | None:
        """Return the task's output, or None if none is recorded."""
        self._check_open()
        return self._behind.outputs.find(task_id) or await self._read(lambda connection: queries.output(connection, task_id))

    async def get_payload(self, task_id: str) -> tuple[bytes | Path, str] | None:
        """Return the task's payload as bytes or as its file, with its encoding, or None if it has none."""
        return (await self.get_payloads([task_id])).get(task_id)

    async def get_payloads(self, task_ids: Sequence[str]) -> dict[str, tuple[bytes | Path, str]]:
        """Return the payloads of these tasks, each as bytes or as its file, with its encoding; omit missing ones."""
        self._check_open()
        found: dict[str, tuple[bytes | Path, str]] = {}
        for task_id in task_ids:
            if (pending := self._behind.payloads.find(task_id)) is not None:
                encoding, data = pending
                found[task_id] = data, encoding
        if on_disk := [task_id for task_id in task_ids if task_id not in found]:
            found |= await self._read(lambda connection: queries.payloads(connection, on_disk, self._payload_folder))
        return found

    async def page(
        self,
        limit: int,
        before: str | None = None,
        offset: int = 0,
        states: list[TaskState] | None = None,
        operation: str | None = None,
        owner: str | None = None,
        notebook: str | None = None,
        name: str | None = None,
        search: str | None = None,
        live: Callable[[], Mapping[str, Describe]] = dict,
    ) -> tuple[list[Task], int, str | None]:
        """Return up to `limit` tasks without parameters, newest first, the number of matches, and the next `before`, None at the end.

        A page costs the same for every `before`, which works even after its task was deleted. Unknown ids raise `InvalidRequest`. The
        tasks of `live()` are included while the history cannot be written.
        """
        those = None if states is None else tuple(dict.fromkeys(str(state) for state in states))
        wanted = queries.Filter(those, operation, owner, notebook, name, search)
        most = min(max(limit, 0), MOST_LISTED)
        await self._flush_unless_failing()
        new = await self._unwritten(live)
        try:
            return await self._read(
                lambda connection: queries.page(connection, self._me, wanted, most, before, max(offset, 0), new),
                slow=wanted.by_text or offset > QUICK_OFFSET,
            )
        except StorageUnavailable:
            new = await self._unwritten(live)
            if not new:
                raise
        return queries.page_of(new, wanted, most, before, max(offset, 0))

    async def _unwritten(self, live: Callable[[], Mapping[str, Describe]]) -> list[Task]:
        """Return the tasks whose rows are missing or old, in the order of submission: unwritten ones and, with a problem, `live` ones."""
        described = {**(live() if self.problem is not None else {}), **self._behind.records.unwritten()}
        tasks = []
        for task_id in sorted(described, key=lambda task_id: task_id.rpartition("_")[2]):
            tasks.append(described[task_id]().model_copy(update={"runtime": self._me}))
            if len(tasks) % MOST_RECORDS == 0:
                await asyncio.sleep(0)
        return tasks

    async def waiting_elsewhere(
        self,
        here: int,
        limit: int,
        offset: int = 0,
        notebook: str | None = None,
        name: str | None = None,
        search: str | None = None,
    ) -> tuple[list[Task], int]:
        """Return up to `limit` pending tasks of other runtimes, oldest first, and their number; `here` is that of all in this one."""
        wanted = queries.Filter(notebook=notebook, name=name, search=search)
        try:
            await self._flush_unless_failing()
            return await self._read(lambda connection: queries.waiting_elsewhere(connection, self._me, wanted, here, limit, offset))
        except StorageUnavailable:  # /health reports it; the tasks of this runtime are listed without them
            return [], 0

    async def metrics(
        self, start: float, end: float, points: int, runtime: str | None = None, now: float | None = None, *, sampled_only: bool = False
    ) -> MetricColumns:
        """Return the metrics from `start` to `end`, in seconds since the epoch, in at most `points` points.

        They are of one runtime or, without `runtime`, of all together, and include buckets that were put before. `now` is the current
        time, which determines the resolution still stored for `start`. `sampled_only` omits task metrics. Raises `ValueError` unless
        `end` is after `start`.
        """
        self._check_open()
        wanted = window(start, end, points, time.time() if now is None else now)
        await self._flush()
        return await self._read(lambda connection: read(connection, wanted, runtime, sampled_only), slow=True)

    async def look(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run `work`, which must not write, on a reader's thread after flushing pending writes, and return its result."""
        await self._flush_unless_failing()
        return await self._read(work, slow=True)

    async def _flush_unless_failing(self) -> None:
        self._check_open()
        if self._problem is None:
            await self._flush()

    # Retention

    async def sweep(self) -> int:
        """Delete finished tasks that exceed the retention settings, and files that no task references. Return the number of tasks.

        After an upgrade, also group the tasks of earlier versions by their code and parameters. Until then a search finds their names.
        """
        self._check_open()
        settings, now = self._settings, now_micros()
        most = settings.retention_tasks
        if self._file.volatile:
            most = min(most or VOLATILE_TASKS, VOLATILE_TASKS)
        since = now - round(settings.retention_days * retention.DAY) if settings.retention_days else 0
        limits = retention.Limits(since, most, settings.retention_payload_bytes)
        deleted = 0
        while True:
            number, files = await self._write(lambda connection: retention.delete_expired(connection, limits))
            await self._remove(files)
            deleted += number
            if not number:
                break
        await self._write(lambda connection: retention.expire_keys(connection, now))
        for table in ("outputs", "payloads"):
            after: int | None = 0
            while after is not None:
                lone, after = await self._read(partial(retention.orphans, table=table, after=after), slow=True)
                if lone:
                    await self._write(partial(retention.remove_orphans, table=table, rows=lone, now=now))
        await self._remove(
            await self._read(lambda connection: retention.unreferenced_files(connection, self._payload_folder, now), slow=True)
        )
        while await self._write(retention.vacuum):
            pass
        more = await self._write(group_older)
        while more:
            await asyncio.sleep(GROUPING_PAUSE)
            more = await self._write(group_older)
        return deleted

    async def _remove(self, files: list[str]) -> None:
        if files:
            # In the reader's thread, because removing a large file takes a while.
            await self._read(lambda connection: retention.remove_files(self._payload_folder, files), slow=True)

    # Threads

    async def close(self, deadline: float = 5.0) -> None:
        """Flush pending writes, stop the threads and release the runtime lock within `deadline` seconds; never raises.

        The lock file is removed last, because without it another runtime may take over the tasks that are still pending.
        """
        if self._closed:
            return
        until = time.monotonic() + deadline
        await self._flush(deadline)
        self._closed = True
        self._behind.stop()
        self._post()
        if self._behind.waiting:
            log.warning("The history is closed with %d unwritten items: %s", self._behind.waiting, self.problem)
        self._writer.close()
        for reader in (*self._quick, *self._slow):
            reader.close()
        threads = self._writer, *self._quick, *self._slow
        while any(thread.alive for thread in threads) and time.monotonic() < until:  # noqa: ASYNC110 - threads know no asyncio
            await asyncio.sleep(0.002)
        if self._writer.alive:
            log.warning("The history's writer is still busy: the runtime lock is held until this process ends")
            return
        self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise Stopping("The history is closed because its runtime has stopped")

    def _check_writable(self) -> None:
        self._check_open()
        if self._refusal is not None:
            raise StorageUnavailable(self._refusal, retry_after=None)

    async def _flush(self, seconds: float = READ_AFTER_SECONDS) -> None:
        """Write everything that waits, and wait up to `seconds` until each write has succeeded or failed."""
        await self._behind.submit_all()
        if self._behind.in_flight or self._metrics.in_flight:
            with contextlib.suppress(StorageUnavailable, Stopping, asyncio.TimeoutError):
                await asyncio.wait_for(self._write(_barrier), seconds)

    async def _write(self, work: Callable[[sqlite3.Connection], Answer], before: Sequence[Job] = ()) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._submit([*before, Job(work, partial(resolve, future))])
        return await future

    async def _read(self, work: Callable[[sqlite3.Connection], Answer], slow: bool = False) -> Answer:
        if self._file.volatile:
            return await self._write(work)
        if self._file.log_removed:
            with contextlib.suppress(StorageUnavailable):
                await self._write(_barrier)
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = self._loop.create_future()
        (self._slow if slow else self._quick)[0].put([Job(work, partial(resolve, future))])
        return await future

    def _submit(self, jobs: list[Job]) -> None:
        """Write these at the end of this loop iteration, together with all others of the iteration."""
        self._loop = asyncio.get_running_loop()
        if not self._outbox:
            self._loop.call_soon(self._post)
        self._outbox.extend(jobs)

    def _post(self) -> None:
        jobs, self._outbox = self._outbox, []
        if not jobs:
            return
        try:
            self._writer.put(jobs)
        except Stopping as error:
            settle([(job, None, error) for job in jobs])

    def _deliver(self, settle: Callable[[list[Outcome]], None], outcomes: list[Outcome]) -> None:
        """Pass a group of outcomes to the loop; called in the threads."""
        if self._loop is None:
            settle(outcomes)
            return
        try:
            self._loop.call_soon_threadsafe(settle, outcomes)
        except RuntimeError:
            # The loop was closed before the history: nothing awaits these.
            log.debug("Dropping %d outcomes of the history: the loop is closed", len(outcomes))

    def _settle_written(self, outcomes: list[Outcome]) -> None:
        failed = next((error for _, _, error in outcomes if isinstance(error, StorageUnavailable)), None)
        if failed is not None:
            self._fail(failed)
        settle(outcomes)
        self._notice_replaced()
        wrote = failed is None and any(job.work is not _barrier for job, _, _ in outcomes)
        if wrote and self._problem is not None and not self._behind.refused:
            self._problem = None
            log.info("Writing the history works again")
        if self._problem is not None and self._loop is not None and not self._closed:
            self._behind.schedule()

    def _settle_read(self, outcomes: list[Outcome]) -> None:
        for _, _, error in outcomes:
            if not isinstance(error, StorageUnavailable):
                self._read_problem = None
            elif self._read_problem is None:
                self._read_problem = str(error)
                log.warning("%s", error)
                if self._loop is not None:
                    self._loop.call_later(RETRY_SECONDS, self._try_reading)
        settle(outcomes)
        self._notice_replaced()

    def _notice_replaced(self) -> None:
        if self._replaced != self._file.replaced and not self._closed:
            self._replaced = self._file.replaced
            self.on_replaced()

    def _try_reading(self) -> None:
        """Read until it works again, which clears the problem."""
        if self._closed or self._read_problem is None:
            return

        def done(_: Any, error: BaseException | None) -> None:
            if error is not None and self._loop is not None:
                self._loop.call_later(RETRY_SECONDS, self._try_reading)

        self._quick[0].put([Job(lambda connection: queries.count(connection, queries.Filter()), done)])

    def _fail(self, error: StorageUnavailable) -> None:
        if self.problem is None:
            log.warning("%s", error)
        if isinstance(error, SchemaTooNew):
            # From now on everything is written to memory, which works.
            self._refusal = str(error)
        else:
            self._problem = str(error)


def _barrier(connection: sqlite3.Connection) -> None:
    """Do nothing. The writer runs jobs in order, so this one ends after all earlier ones; its success does not show that writing works."""


class PendingWrites(Generic[Item]):
    """Items of one type that are not on disk yet, by task."""

    def __init__(self) -> None:
        self.waiting: dict[str, Item] = {}
        self.in_flight: list[dict[str, Item]] = []
        self.refused: set[str] = set()
        """Tasks whose last write failed."""

    def find(self, task_id: str) -> Item | None:
        """Return the newest version that is not on disk yet, or None."""
        for items in (self.waiting, *reversed(self.in_flight)):
            if task_id in items:
                return items[task_id]
        return None

    def unwritten(self) -> dict[str, Item]:
        """Return the newest version of each item that is not on disk yet."""
        return {task_id: item for items in (*self.in_flight, self.waiting) for task_id, item in items.items()}

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
        for items in (self.waiting, *self.in_flight):
            items.pop(task_id, None)
        self.refused.discard(task_id)


class WriteBehind:
    """Write-behind buffer: the newest record, output and payload of each task, kept until they are on disk.

    It runs on the loop and passes jobs to `submit`; failed writes are retried every second. `known` holds the unfinished tasks that
    have a row on disk. `failing()` returns whether writing fails now.
    """

    def __init__(self, runtime: str, embedded: bool, submit: Callable[[list[Job]], None], failing: Callable[[], bool]) -> None:
        self.records: PendingWrites[Describe] = PendingWrites()
        self.outputs: PendingWrites[TaskOutput] = PendingWrites()
        self.payloads: PendingWrites[Payload] = PendingWrites()
        self.known: set[str] = set()
        self._all: tuple[PendingWrites[Any], ...] = (self.records, self.outputs, self.payloads)
        self._runtime = runtime
        self._embedded = embedded
        self._submit = submit
        self._failing = failing
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Number of items that are not submitted yet."""
        return sum(len(pending.waiting) for pending in self._all)

    @property
    def in_flight(self) -> int:
        """Number of submitted batches whose write has not ended."""
        return sum(len(pending.in_flight) for pending in self._all)

    @property
    def refused(self) -> bool:
        """True if any item's last write failed."""
        return any(pending.refused for pending in self._all)

    def add(self, pending: PendingWrites[Item], task_id: str, item: Item) -> None:
        """Write `item` soon, in place of an older one of the same task."""
        pending.waiting[task_id] = item
        if self._timer is None:
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
        for pending in self._all:
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
            jobs.append(self._batch(self.payloads, {task_id: self.payloads.waiting.pop(task_id)}, rows.write_payloads))
        if task_id in self.outputs.waiting:
            jobs.append(self._batch(self.outputs, {task_id: self.outputs.waiting.pop(task_id)}, rows.write_outputs))
        return jobs

    async def submit_all(self) -> None:
        """Submit everything that waits, in several loop iterations if there are many records."""
        for _ in range(1 + len(self.records.waiting) // MOST_RECORDS):
            self._submit_waiting()
            await asyncio.sleep(0)

    def _fire(self) -> None:
        self._timer = None
        if self._failing():
            self._touch_files()
            if not self.waiting:
                self._submit([Job(rows.probe, lambda result, error: None)])
        if self.in_flight >= MOST_BATCHES:
            # The first batch that ends schedules the next write.
            return
        self._submit_waiting()
        if self._failing() or self.waiting:
            self.schedule()

    def _submit_waiting(self) -> None:
        """Submit all payloads and outputs, then up to `MOST_RECORDS` records, which must not be on disk before them."""
        jobs = [self._batch(self.payloads, some, rows.write_payloads) for some in _parted(self.payloads.take())]
        if outputs := self.outputs.take():
            jobs.append(self._batch(self.outputs, outputs, rows.write_outputs))
        described: dict[str, Describe] = {}
        tasks: list[tuple[Task, bool]] = []
        for task_id, describe in self.records.take(MOST_RECORDS).items():
            try:
                tasks.append((describe(), task_id in self.known))
            except Exception:
                log.exception("Cannot write the record of %s: describing it failed", task_id)
            else:
                described[task_id] = describe
        if described:
            jobs.append(self._batch(self.records, described, lambda connection, _: self._write_records(connection, tasks)))
        if jobs:
            self._submit(jobs)

    def _write_records(self, connection: sqlite3.Connection, tasks: list[tuple[Task, bool]]) -> list[TaskRecord]:
        records = []
        for task, known in tasks:
            with rows.DataErrorLog(task.task_id):
                records.append((record_of(task, self._runtime, self._embedded), known))
        return rows.write_records(connection, records)

    def _batch(
        self, pending: PendingWrites[Item], items: dict[str, Item], work: Callable[[sqlite3.Connection, dict[str, Item]], Any]
    ) -> Job:
        """Return a job that writes `items`; they wait again if it fails."""
        # `drop` changes this copy; the writer thread uses the other.
        batch = dict(items)
        pending.in_flight.append(batch)

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None and not isinstance(error, StorageUnavailable):
                log.error("Buffered records are lost: writing them failed", exc_info=error)
            pending.committed(batch, kept=not isinstance(error, StorageUnavailable))
            if error is None and isinstance(result, list):
                self.remember(result)
            if self.waiting or self._failing():
                self.schedule()

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
