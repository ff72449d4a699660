"""Task history of a user on disk, shared by all runtimes on the machine.

One thread writes and one reads; the code here runs on the runtime's loop and never blocks it. See `connection.py` for the file, its
damage and its permissions, `writer.py` for the threads, and `rows.py` for rows and guards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from openruntime_jupyter.errors import Stopping, StorageUnavailable
from openruntime_jupyter.runtime import locks
from openruntime_jupyter.runtime.metrics.rollup import Buckets, window
from openruntime_jupyter.runtime.permissions import private_folder
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage import queries
from openruntime_jupyter.runtime.storage import retention as sweeping
from openruntime_jupyter.runtime.storage.bulk_writes import write_all, write_new
from openruntime_jupyter.runtime.storage.connection import HistoryFile
from openruntime_jupyter.runtime.storage.metrics import MetricColumns, MetricsWriteBehind, read
from openruntime_jupyter.runtime.storage.rows import record_of, take_over, write_or_raise
from openruntime_jupyter.runtime.storage.schema import SchemaTooNew
from openruntime_jupyter.runtime.storage.write_behind import Describe, WriteBehind, now_micros
from openruntime_jupyter.runtime.storage.writer import Job, Outcome, Reader, Writer, resolve, settle
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskState

log = logging.getLogger(__name__)

READ_AFTER_SECONDS = 2.0
"""Maximum wait of a list for pending writes; with a slow disk the list is stale rather than blocked."""
MOST_LISTED = 10_000
VOLATILE_TASKS = 10_000
"""Finished tasks kept in memory if no file can be used."""

Answer = TypeVar("Answer")


class History:
    """Tasks of this user, including those of other runtimes.

    Call `open()` once, then all methods on one loop, then `close()`; later calls raise `Stopping`. While writing fails, `problem`
    holds the reason and the fix; it is cleared once writing works again. If a newer release wrote the file, `problem` stays set and the
    history is kept in memory only.
    """

    def __init__(self, settings: Settings, runtime_id: str) -> None:
        self._settings = settings
        self._me = runtime_id
        self._payload_folder = settings.payloads
        self._runtimes = settings.data_dir / "runtimes"
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
        self._reader = Reader(self._file, partial(self._deliver, settle))
        self._behind = WriteBehind(runtime_id, settings.embedded, self._submit, lambda: self._problem is not None)
        self._metrics = MetricsWriteBehind(runtime_id, self._submit)
        self._outbox: list[Job] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None
        self._refusal: str | None = None
        self._closed = False

    @property
    def problem(self) -> str | None:
        """Reason for failing writes and how to fix it; None if writing works."""
        return self._refusal or self._problem

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
        self._reader.start()
        try:
            private_folder(self._payload_folder)
            # Tasks with this runtime's id are from an earlier run, because this one has just started.
            tasks: list[Task] = self._writer.call(partial(self._take_over, is_alive=self._is_other_alive))
            locks.remove_dead_locks(self._runtimes)
        except OSError as error:
            self._fail(
                StorageUnavailable(f"Cannot use the data folder {self._settings.data_dir} ({error}): make it writable for this user")
            )
            raise StorageUnavailable(str(self._problem)) from error
        self._behind.known.update(task.task_id for task in tasks)
        return tasks

    async def take_over(self) -> list[Task]:
        """Take over the tasks of runtimes that died since `open`. Return the tasks to queue here.

        A runtime calls it periodically; otherwise the tasks of a dead kernel would stay listed as running.
        """
        self._check_open()
        tasks = await self._write(partial(self._take_over, is_alive=self._is_alive))
        self._behind.known.update(task.task_id for task in tasks)
        return tasks

    def _take_over(self, connection: sqlite3.Connection, is_alive: Callable[[str], bool]) -> list[Task]:
        if self._file.volatile:
            return []
        return take_over(connection, self._me, self._settings.embedded, is_alive, time.time())

    def _is_alive(self, runtime: str) -> bool:
        return runtime == self._me or locks.is_alive(self._runtimes, runtime)

    def _is_other_alive(self, runtime: str) -> bool:
        return runtime != self._me and locks.is_alive(self._runtimes, runtime)

    async def commit(self, task: Task) -> None:
        """Write the task with its pending output and payload, and return when they are on disk.

        Raises `StorageUnavailable` if the write fails, and `TaskConflict` if this runtime may not change the row: another runtime has
        taken the task over, it was purged, or it already has another final state.
        """
        self._check_open()
        if self._refusal is not None:
            raise StorageUnavailable(self._refusal, retry_after=3600.0)
        record = record_of(task, self._me, self._settings.embedded)
        known = task.task_id in self._behind.known
        before = self._behind.attachment_jobs(task.task_id)
        await self._write(lambda connection: write_or_raise(connection, record, known), before)
        self._behind.remember([record])

    async def commit_new(self, task: Task, key: tuple[str, str, str]) -> tuple[str, str] | None:
        """Write a new task under `key` (owner, idempotency key, fingerprint), and return when both are on disk.

        If the key already belongs to a task, write nothing and return its id and fingerprint. Raises the errors of `commit`.
        """
        self._check_open()
        if self._refusal is not None:
            raise StorageUnavailable(self._refusal, retry_after=3600.0)
        record = record_of(task, self._me, self._settings.embedded)
        earlier = await self._write(lambda connection: write_new(connection, record, key, now_micros()))
        if earlier is None:
            self._behind.remember([record])
        return earlier

    async def commit_all(self, tasks: list[Task], key: tuple[str, str, str] | None = None) -> set[str]:
        """Write new tasks in one transaction and wait until they are on disk. Return the ids of the tasks that a guard rejected.

        `key` is (owner, idempotency key, fingerprint) and is stored for the first task. Raises `StorageUnavailable` if the write fails,
        and `TaskConflict` if the key belongs to other tasks; nothing is written then.
        """
        self._check_open()
        if self._refusal is not None:
            raise StorageUnavailable(self._refusal, retry_after=3600.0)
        describe = partial(record_of, runtime=self._me, embedded=self._settings.embedded)
        written = await self._write(lambda connection: write_all(connection, [describe(task) for task in tasks], key, now_micros()))
        self._behind.remember(written)
        return {task.task_id for task in tasks}.difference(record.id for record in written)

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

    async def get(self, task_id: str) -> Task | None:
        """Return the current task with its parameters, or None if it is unknown. Raises `StorageUnavailable` if reading fails."""
        self._check_open()
        describe = self._behind.records.find(task_id)
        if describe is not None:
            return describe()
        return await self._read(lambda connection: queries.one(connection, task_id, self._me))

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
    ) -> tuple[list[Task], int, str | None]:
        """Return up to `limit` tasks without parameters, newest first, the number of matches, and the next `before`, None at the end.

        A page costs the same for every `before`, which works even after its task was deleted. Unknown ids raise `InvalidRequest`.
        """
        wanted = queries.Filter(None if states is None else tuple(dict.fromkeys(str(state) for state in states)), operation, owner)
        most = min(max(limit, 0), MOST_LISTED)
        return await self.look(lambda connection: queries.page(connection, self._me, wanted, most, before, max(offset, 0)))

    async def waiting_elsewhere(self, here: int, limit: int, offset: int = 0) -> tuple[list[Task], int]:
        """Return up to `limit` pending tasks of other runtimes, oldest first, and their number; `here` is the number in this one."""
        return await self.look(lambda connection: queries.waiting_elsewhere(connection, self._me, here, limit, offset))

    async def look(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run `work`, which must not write, on the reader's thread after flushing pending writes, and return its result."""
        self._check_open()
        if self._problem is None:
            await self._behind.flush(READ_AFTER_SECONDS)
        return await self._read(work)

    def put_metrics(self, buckets: Buckets) -> None:
        """Add these to the metrics of this runtime soon; buckets of a failed write are written with the next ones. Never raises."""
        if not self._closed:
            self._metrics.add(buckets)

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
        await self._metrics.flush(READ_AFTER_SECONDS)
        return await self._read(lambda connection: read(connection, wanted, runtime, sampled_only))

    async def delete(self, task_id: str) -> None:
        """Delete a task, its output and payload; unknown ids are ignored. Raises `TaskConflict` if the task is not finished."""
        self._check_open()
        await self._behind.flush(READ_AFTER_SECONDS)
        files = await self._write(lambda connection: queries.delete(connection, task_id))
        self._behind.drop(task_id)
        await self._remove(files)

    async def change(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Run `work` on the writer's thread after flushing pending writes; its changes are on disk when this returns."""
        self._check_open()
        await self._behind.flush(READ_AFTER_SECONDS)
        return await self._write(work)

    async def remember_key(self, owner: str | None, key: str, task_id: str | None, fingerprint: str = "") -> tuple[str, str] | None:
        """Store an idempotency key for a day, or return the (task id, fingerprint) it belongs to; with None as `task_id` only look."""
        self._check_open()
        return await self._write(
            lambda connection: queries.remember_key(connection, owner or "", key, task_id, fingerprint, self._me, now_micros())
        )

    async def sweep(self) -> int:
        """Delete finished tasks that exceed the retention settings, and files that no task references. Return the number of tasks."""
        self._check_open()
        settings, now = self._settings, now_micros()
        most = settings.retention_tasks
        if self._file.volatile:
            most = min(most or VOLATILE_TASKS, VOLATILE_TASKS)
        since = now - round(settings.retention_days * sweeping.DAY) if settings.retention_days else 0
        limits = sweeping.Limits(since, most, settings.retention_payload_bytes)
        deleted = 0
        while True:
            number, files = await self._write(lambda connection: sweeping.step(connection, limits))
            await self._remove(files)
            deleted += number
            if not number:
                break
        await self._write(lambda connection: sweeping.forget(connection, now))
        for table in ("outputs", "payloads"):
            await self._sweep_orphans(table, now)
        await self._remove(await self._read(lambda connection: sweeping.strays(connection, self._payload_folder, now)))
        while await self._write(sweeping.give_back):
            pass
        return deleted

    async def _sweep_orphans(self, table: str, now: int) -> None:
        after: str | None = ""
        while after is not None:
            lone, after = await self._read(partial(sweeping.orphans, table=table, after=after))
            if lone:
                await self._write(partial(sweeping.remove_orphans, table=table, ids=lone, now=now))

    async def _remove(self, files: list[str]) -> None:
        if files:
            # In the reader's thread, because removing a large file takes a while.
            await self._read(lambda connection: sweeping.remove_files(self._payload_folder, files))

    async def close(self, deadline: float = 5.0) -> None:
        """Flush pending writes, stop the threads and release the runtime lock within `deadline` seconds; never raises.

        The lock file is removed last, because without it another runtime may take over the tasks that are still pending.
        """
        if self._closed:
            return
        until = time.monotonic() + deadline
        self._behind.stop()
        await self._behind.flush(deadline)
        await self._metrics.flush(max(0.0, until - time.monotonic()))
        self._closed = True
        self._behind.stop()
        self._post()
        if self._behind.waiting:
            log.warning("The history is closed with %d unwritten items: %s", self._behind.waiting, self.problem)
        self._writer.close()
        self._reader.close()
        while (self._writer.alive or self._reader.alive) and time.monotonic() < until:  # noqa: ASYNC110 - threads know no asyncio
            await asyncio.sleep(0.002)
        if self._writer.alive:
            log.warning("The history's writer is still busy: the runtime lock is held until this process ends")
            return
        self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise Stopping("The history is closed because its runtime has stopped")

    async def _write(self, work: Callable[[sqlite3.Connection], Answer], before: list[Job] | None = None) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._submit([*(before or ()), Job(work, partial(resolve, future))])
        return await future

    async def _read(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        if self._file.volatile:
            return await self._write(work)
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._reader.put([Job(work, partial(resolve, future))])
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
        if failed is None and self._problem is not None and not self._behind.refused:
            self._problem = None
            log.info("Writing the history works again")
        if self._problem is not None and self._loop is not None and not self._closed:
            self._behind.schedule()

    def _fail(self, error: StorageUnavailable) -> None:
        if self.problem is None:
            log.warning("%s", error)
        if isinstance(error, SchemaTooNew):
            # From now on everything is written to memory, which works.
            self._refusal = str(error)
        else:
            self._problem = str(error)
