"""Writer thread and reader threads of the task history, each with one connection. The writer groups waiting jobs into one transaction.

The threads are independent of the event loop: they call `deliver` once per group, and its owner passes the outcomes to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openruntime_jupyter.errors import OpenRuntimeError, Stopping, StorageUnavailable
from openruntime_jupyter.runtime.storage.connection import Connection, HistoryFile, is_full, is_storage, unavailable

MOST_JOBS = 2_000
"""Maximum number of jobs in one transaction; more would block the writes of other runtimes for too long."""


@dataclass(slots=True)
class Job:
    """Database job: `work(connection)` runs in the thread, and `done(result, error)` where `deliver` passes the outcome.

    Work may run again after a failure, so it must change only the database. An `OpenRuntimeError` that it raises is the job's result
    and must come before its first change; any other error rolls the transaction back.
    """

    work: Callable[[sqlite3.Connection], Any]
    done: Callable[[Any, BaseException | None], None]


JobQueue = queue.SimpleQueue[list[Job] | None]
Outcome = tuple[Job, Any, BaseException | None]
Deliver = Callable[[list[Outcome]], None]


class DatabaseThread(ABC):
    """Thread that runs jobs in order until it is closed."""

    def __init__(self, name: str, file: HistoryFile, deliver: Deliver, jobs: JobQueue) -> None:
        self._file = file
        self._deliver = deliver
        self._queue = jobs
        self._closed = False
        self._connection: Connection | None = None
        # A daemon, so that a write blocked by another process does not delay the interpreter's exit.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; called once."""
        self._thread.start()

    def put(self, jobs: list[Job]) -> None:
        """Queue these jobs, as one group if it is not too large; raise `Stopping` after `close()`."""
        if self._closed:
            raise Stopping("The history is closed because its runtime has stopped")
        self._queue.put(jobs)

    def call(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run `work`, block until it has finished, and raise its error. Not for use once outcomes are delivered to a loop."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.put([Job(work, lambda result, error: answer.put((result, error)))])
        result, error = answer.get()
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread after the queued jobs."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    @property
    def alive(self) -> bool:
        """True while the thread is running."""
        return self._thread.is_alive()

    @abstractmethod
    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Run a group of jobs; never raises."""

    def _main(self) -> None:
        last = False
        while not last:
            jobs, last = self._next()
            if jobs:
                self._deliver(self.run(jobs))
        self.disconnect()

    def _next(self) -> tuple[list[Job], bool]:
        """Return queued jobs and whether they are the last ones; block while none is queued."""
        jobs = self._queue.get()
        return jobs or [], jobs is None

    def _heal(self, error: Exception) -> None:
        """Close the connection that found damage, and move the file aside if a new connection finds it as well."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._file.heal(connection, error)

    def disconnect(self) -> None:
        """Close the connection; must run in this thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


class Writer(DatabaseThread):
    """Writer thread. It calls `prepare()` before each connect, which raises `OSError` if this runtime must not write."""

    def __init__(self, file: HistoryFile, prepare: Callable[[], None], deliver: Deliver) -> None:
        super().__init__("openruntime-history-writer", file, deliver, queue.SimpleQueue())
        self._prepare = prepare

    def _next(self) -> tuple[list[Job], bool]:
        """Return all queued jobs, as far as they fit into one transaction."""
        jobs, last = super()._next()
        while not last and len(jobs) < MOST_JOBS:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            last = more is None
            jobs = jobs + (more or [])
        return jobs, last

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Run all jobs in one transaction. If one of them causes an error, run each alone, so that the others succeed."""
        try:
            return self._run_group(jobs)
        except Exception as error:
            return self._recover(error, jobs)

    def _recover(self, error: Exception, jobs: list[Job]) -> list[Outcome]:
        if self._file.suspicious(error):
            try:
                self._heal(error)
                return self._run_group(jobs)
            except Exception as again:
                error = again
        outside = is_storage(error) and not is_full(error)
        if outside and "locked" not in str(error):
            self.disconnect()
        if outside or len(jobs) == 1:
            raised = unavailable(error, self._file.path) if is_storage(error) else error
            return [(job, None, raised) for job in jobs]
        return [outcome for job in jobs for outcome in self.run([job])]

    def _run_group(self, jobs: list[Job]) -> list[Outcome]:
        while True:
            connection = self._connected()
            outcomes = self._transaction(connection, jobs) if self._file.in_place(connection) else None
            if outcomes is not None and self._file.in_place(connection):
                return outcomes
            saved = self._file.leave(connection)
            self._connection = None
            if saved and outcomes is not None:
                return outcomes
            # The transaction went to a file that is no longer at the path: write it again to the new one.

    def _connected(self) -> Connection:
        if self._connection is None:
            self._prepare()
            self._connection = self._file.connect()
        return self._connection

    def _transaction(self, connection: Connection, jobs: list[Job]) -> list[Outcome]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._file.volatile:
                self._file.check(connection)
            outcomes = [_outcome(connection, job) for job in jobs]
            connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise
        return outcomes


class Reader(DatabaseThread):
    """Reader thread, which runs each job in one snapshot. Readers share a queue, so that a slow query delays no other."""

    def __init__(self, file: HistoryFile, deliver: Deliver, jobs: JobQueue) -> None:
        super().__init__("openruntime-history-reader", file, deliver, jobs)

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Run each job alone. A damaged file is moved aside and the job runs on the new one."""
        return [self._run_one(job) for job in jobs]

    def _run_one(self, job: Job) -> Outcome:
        try:
            return self._snapshot(job)
        except Exception as error:
            try:
                if not self._file.suspicious(error):
                    raise
                self._heal(error)
                # The writer creates the new file at its next write; the reader needs it now.
                self._file.connect().close()
                return self._snapshot(job)
            except Exception as again:
                self.disconnect()
                return job, None, unavailable(again, self._file.path, "read") if is_storage(again) else again

    def _snapshot(self, job: Job) -> Outcome:
        connection = self._connection
        if connection is None or not self._file.readable(connection):
            self.disconnect()
            connection = self._connection = self._file.connect_for_reading()
        connection.execute("BEGIN")
        try:
            return _outcome(connection, job)
        finally:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def _outcome(connection: sqlite3.Connection, job: Job) -> Outcome:
    try:
        return job, job.work(connection), None
    except StorageUnavailable:
        raise
    except OpenRuntimeError as error:
        return job, None, error


def settle(outcomes: list[Outcome]) -> None:
    """Call `done` of each job."""
    for job, result, error in outcomes:
        job.done(result, error)


def resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Set the result or exception of `future`, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
