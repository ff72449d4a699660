"""SQLite file of the task history: opening, damage, replacement by other processes, and error messages."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import LockFile, lock_within
from openruntime_jupyter.runtime.permissions import private_file, private_folder
from openruntime_jupyter.runtime.storage.schema import SchemaTooNew, migrate, refuse_newer, version

log = logging.getLogger(__name__)

NAME = "history.sqlite3"
COMPANIONS = ("-wal", "-shm")
BUSY_SECONDS = 5.0
"""Maximum wait of a write for another process's transaction before the file counts as locked."""
WAL_BYTES = 64 * 1024 * 1024
"""Size to which the write-ahead log is truncated."""
CACHE_KIB = 8 * 1024


class HistoryFile:
    """One SQLite file that several runtimes of a user write at once.

    `notice` describes damage or replacement of the file for users, None if neither happened. `volatile` is true if a newer release
    wrote the file: connections then use an in-memory database, which ends with its connection.
    """

    def __init__(self, folder: Path, durability: Literal["normal", "full"]) -> None:
        self.path = folder / NAME
        self.notice: str | None = None
        self.volatile = False
        self._durability = durability

    def connect(self) -> sqlite3.Connection:
        """Return a writing connection; create the file, migrate its schema, and move a damaged file aside.

        Raises `SchemaTooNew` once, after which it connects to memory; passes on `sqlite3.Error` and `OSError`.
        """
        if self.volatile:
            return self._prepared(sqlite3.connect(":memory:", isolation_level=None))
        private_folder(self.path.parent)
        with self._alone():
            try:
                return self._open()
            except SchemaTooNew:
                self.volatile = True
                raise
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._set_aside(error)
                return self._open()

    def connect_for_reading(self) -> sqlite3.Connection:
        """Return a read-only connection; the file must exist."""
        with self._alone():
            connection = self._raw()
            try:
                connection.execute("PRAGMA query_only = ON")
                # SQLite opens the companion files at the first read, which must not happen while a process moves them aside.
                version(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def heal(self, connection: sqlite3.Connection, error: Exception) -> None:
        """Move the file aside if a new connection finds the damage as well; call `connect()` next."""
        with self._alone():
            in_place = not self.volatile and self.in_place(connection)
            connection.close()
            if not in_place:
                self.notice_replaced()
            elif not self._sound():
                self._set_aside(error)

    def notice_replaced(self) -> None:
        """Set and log the notice that another process removed or replaced the open file."""
        if self.notice is None:
            self.notice = f"The history {self.path} was removed or replaced while it was in use: earlier tasks are not listed"
            log.warning(self.notice)

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode of the file at the path, or None if it is missing."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def in_place(self, connection: sqlite3.Connection) -> bool:
        """Return whether `connection` still uses the file at the path, not one that was moved or removed."""
        return self.volatile or (isinstance(connection, _Connection) and connection.identity == self.identity())

    def check(self, connection: sqlite3.Connection) -> None:
        """Raise `SchemaTooNew` if a newer release has changed the schema since `connection` was made."""
        try:
            refuse_newer(connection, self.path)
        except SchemaTooNew:
            self.volatile = True
            raise

    def _open(self) -> sqlite3.Connection:
        private_file(self.path)
        return self._prepared(self._raw())

    def _raw(self) -> _Connection:
        while True:
            before = self.identity()
            # The URI's mode keeps SQLite from creating the file with the umask's permissions.
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None, factory=_Connection
            )
            if before is not None and before == self.identity():
                connection.identity = before
                return connection
            connection.close()

    def _prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            if not self.volatile:
                # Must be first: the next statement would already change a newer file.
                refuse_newer(connection, self.path)
                # Effective only on an empty file. Allows the sweep to return free pages to the disk.
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {self._durability}")
                if self._durability == "full":
                    # macOS: fsync alone leaves the data in the drive's cache.
                    connection.execute("PRAGMA fullfsync = ON")
                    connection.execute("PRAGMA checkpoint_fullfsync = ON")
                connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA temp_store = MEMORY")
            migrate(connection)
            connection.execute("SELECT count(*) FROM counters").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _sound(self) -> bool:
        try:
            connection = self._raw()
        except sqlite3.Error:
            return False
        with contextlib.closing(connection):
            try:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
            except sqlite3.Error as error:
                return not is_damage(error)

    def _set_aside(self, error: Exception) -> None:
        stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
        aside = self.path.with_name(f"history-{stamp}.corrupt.sqlite3")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"history-{stamp}-{number}.corrupt.sqlite3")
        for ending in (*COMPANIONS, ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
        self.notice = f"The history was damaged ({error}). It was moved to {aside} and a new one was created: earlier tasks are not listed."
        log.error(self.notice)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Exclude other processes while opening or moving the file, so that a new file never gets the companions of an old one."""
        lock = LockFile(self.path.with_suffix(".lock"))
        try:
            if not lock_within(lock, BUSY_SECONDS):
                raise sqlite3.OperationalError("database is locked")
            yield
        finally:
            lock.close()


class _Connection(sqlite3.Connection):
    """Connection that records its file's identity, because SQLite continues to write to a file that was renamed or removed."""

    identity: tuple[int, int] | None = None


def is_damage(error: BaseException) -> bool:
    """Return whether SQLite reports a damaged file."""
    return isinstance(error, sqlite3.DatabaseError) and any(text in str(error) for text in ("malformed", "not a database"))


def is_full(error: BaseException) -> bool:
    """Return whether the disk is full; smaller writes may still succeed then."""
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)


def is_storage(error: BaseException) -> bool:
    """Return whether the file or its disk caused the error, not the data to write."""
    if is_damage(error) or isinstance(error, (OSError, SchemaTooNew)):
        return True
    texts = ("full", "locked", "readonly", "disk I/O", "unable to open", "no such table")
    return isinstance(error, sqlite3.OperationalError) and any(text in str(error) for text in texts)


def unavailable(error: BaseException, path: Path) -> StorageUnavailable:
    """Return `error` as a message for users that says how to fix it."""
    if isinstance(error, StorageUnavailable):
        return error
    text = str(error)
    if "full" in text or "No space" in text:
        advice = f"The disk that holds the history ({path}) is full: free some space"
    elif "locked" in text:
        advice = f"Another process keeps the history ({path}) locked: end it, or wait until it has finished"
    elif "readonly" in text or "unable to open" in text or isinstance(error, PermissionError):
        advice = f"Cannot open the history ({path}) for writing ({text}): make the file and its folder writable for this user"
    else:
        advice = f"Cannot write the history ({path}): {text}. Check the disk that holds it"
    return StorageUnavailable(f"{advice}. Until then asynchronous tasks are rejected; synchronous tasks still run.")
