"""SQLite file of the task history: opening, damage, replacement by other processes, and error messages."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.locks import LockFile, lock_within
from openruntime_jupyter.runtime.permissions import UnsafePath, check_private, private_file, private_folder
from openruntime_jupyter.runtime.storage.schema import SchemaTooNew, check_parts, migrate, refuse_newer, version

log = logging.getLogger(__name__)

NAME = "history.sqlite3"
COMPANIONS = ("-wal", "-shm")
BUSY_SECONDS = 5.0
"""Maximum wait of a write for another process's transaction before the file counts as locked."""
WAL_BYTES = 64 * 1024 * 1024
"""Size to which the write-ahead log is truncated."""
CACHE_KIB = 8 * 1024
OTHER_CAUSES = ("full", "locked", "readonly", "disk I/O", "unable to open", "out of memory", "interrupted")
"""Texts of SQLite's errors that do not mean damage."""

DATABASE_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""Errors of SQLite. Python raises the second one for messages that quote damaged text."""

Identity = tuple[int, int]
_text = functools.partial(str, encoding="utf-8", errors="replace")


class Connection(sqlite3.Connection):
    """Connection that records its files' identities, because SQLite continues to write to files that were renamed or removed."""

    identity: Identity | None = None
    log_identity: Identity | None = None


class HistoryFile:
    """One SQLite file that several runtimes of a user write at once.

    `notice` describes damage or replacement of the file for users, None if neither happened. `volatile` is true if a newer release
    wrote the file: connections then use an in-memory database, which ends with its connection. `replaced` counts the files that took the
    place of an earlier one.
    """

    def __init__(self, folder: Path, durability: Literal["normal", "full"]) -> None:
        self.path = folder / NAME
        self.notice: str | None = None
        self.volatile = False
        self.replaced = 0
        self._durability = durability
        self._log = folder / f"{NAME}-wal"
        self._connected: Identity | None = None
        self._connected_log: Identity | None = None

    def connect(self) -> Connection:
        """Return a writing connection; create the file, migrate its schema, and move a damaged file aside.

        Raises `SchemaTooNew` once, after which it connects to memory; passes on `sqlite3.Error` and `OSError`.
        """
        if self.volatile:
            return self._prepared(sqlite3.connect(":memory:", isolation_level=None, factory=Connection))
        private_folder(self.path.parent)
        with self._alone():
            try:
                connection = self._open()
            except SchemaTooNew:
                self.volatile = True
                raise
            except DATABASE_ERRORS as error:
                if not self.suspicious(error) or self._sound(error):
                    raise
                self._set_aside(error)
                connection = self._open()
            if self._connected not in (None, connection.identity):
                self.replaced += 1
            self._connected, self._connected_log = connection.identity, connection.log_identity
        return connection

    def connect_for_reading(self) -> Connection:
        """Return a read-only connection; the file must exist."""
        with self._alone():
            connection = self._raw()
            try:
                connection.execute("PRAGMA query_only = ON")
                # SQLite opens the companion files at the first read, which must not happen while a process moves them aside.
                version(connection)
                connection.log_identity = _identity(self._log)
            except BaseException:
                connection.close()
                raise
        return connection

    def heal(self, connection: Connection, error: Exception) -> None:
        """Close a connection that reported damage, and move the file aside if a new one finds it as well; call `connect()` next."""
        if not self.in_place(connection):
            self.leave(connection)
            return
        with self._alone():
            connection.close()
            if not self.volatile and not self._sound(error):
                self._set_aside(error)

    def leave(self, connection: Connection) -> bool:
        """Close a connection that is not in place. Return whether the file has everything that was committed on it.

        If only the write-ahead log was removed, its content is still open here and is copied into the file first, unless another process
        has done that and written to a new log. Raises `BlockingIOError`, and leaves the connection open, while the file is locked.
        """
        saved = False
        with self._alone():
            same_file = connection.identity == _identity(self.path)
            if same_file and not (self._log.exists() and self._log.stat().st_size):
                with contextlib.suppress(sqlite3.DatabaseError):
                    saved = not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    if not saved:
                        raise BlockingIOError(f"{self.path}: database is locked")
            connection.close()
        if same_file:
            log.warning("The write-ahead log of the history %s was removed while it was in use. Its content was saved.", self.path)
        elif self.notice is None:
            self.notice = f"The history {self.path} was removed or replaced while it was in use: earlier tasks are not listed"
            log.warning(self.notice)
        return saved

    def in_place(self, connection: Connection) -> bool:
        """Return whether `connection` still uses the files at the path, not ones that were moved or removed."""
        if self.volatile:
            return True
        return connection.identity == _identity(self.path) and connection.log_identity == _identity(self._log)

    def readable(self, connection: Connection) -> bool:
        """Return whether a reading connection is up to date. It is until the writer has saved a removed write-ahead log."""
        return connection.identity == _identity(self.path) and _identity(self._log) in (connection.log_identity, None)

    @property
    def log_removed(self) -> bool:
        """True if the write-ahead log was removed. Readers must not connect before the writer has saved its content."""
        return self._connected_log not in (None, _identity(self._log))

    def check(self, connection: Connection) -> None:
        """Raise `SchemaTooNew` if a newer release has changed the schema since `connection` was made."""
        try:
            refuse_newer(connection, self.path)
        except SchemaTooNew:
            self.volatile = True
            raise

    def suspicious(self, error: Exception) -> bool:
        """Return whether the error may be due to damage. A damaged header may forbid writing to a file that this user may write."""
        if isinstance(error, sqlite3.OperationalError) and "readonly" in str(error):
            return os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        return is_damage(error)

    def _open(self) -> Connection:
        private_file(self.path)
        return self._prepared(self._raw())

    def _raw(self) -> Connection:
        for ending in ("", *COMPANIONS):
            with contextlib.suppress(FileNotFoundError):
                path = Path(f"{self.path}{ending}")
                check_private(path, os.lstat(path))
        while True:
            before = _identity(self.path)
            # The URI's mode keeps SQLite from creating the file with the umask's permissions.
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None, factory=Connection
            )
            if before is not None and before == _identity(self.path):
                connection.identity = before
                # Damaged text must not fail the query of its row.
                connection.text_factory = _text
                return connection
            connection.close()

    def _prepared(self, connection: Connection) -> Connection:
        try:
            if not self.volatile:
                # Must be first: the next statements would already change a newer file, or one of another program.
                refuse_newer(connection, self.path)
                check_parts(connection)
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
            connection.log_identity = _identity(self._log)
        except BaseException:
            connection.close()
            raise
        return connection

    def _sound(self, error: Exception) -> bool:
        """Return whether a new connection finds no damage after `error`, not even in the header, which may forbid writing."""
        try:
            with contextlib.closing(self._raw()) as connection:
                refuse_newer(connection, self.path)
                check_parts(connection)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA user_version = {version(connection)}")
                connection.execute("ROLLBACK")
                # The quick check does not compare indexes with their tables, which takes a minute for a large history.
                check = "integrity_check" if "malformed" in str(error) else "quick_check"
                return bool(connection.execute(f"PRAGMA {check}(1)").fetchone()[0] == "ok")
        except SchemaTooNew:
            return True
        except DATABASE_ERRORS as found:
            return not self.suspicious(found)

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


def _identity(path: Path) -> Identity | None:
    """Return device and inode of the file at the path, or None if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_storage(error: BaseException) -> bool:
    """Return whether the file or its disk caused the error, not the data to write."""
    if isinstance(error, DATABASE_ERRORS):
        return not isinstance(error, (sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.IntegrityError))
    return isinstance(error, (OSError, StorageUnavailable))


def is_damage(error: BaseException) -> bool:
    """Return whether the error may be due to a damaged file.

    SQLite reports damage in many forms, such as missing tables, so that everything but the known other causes counts.
    """
    return isinstance(error, DATABASE_ERRORS) and is_storage(error) and not any(text in str(error) for text in OTHER_CAUSES)


def is_full(error: BaseException) -> bool:
    """Return whether the disk is full; smaller writes may still succeed then."""
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)


def unavailable(error: BaseException, path: Path, action: Literal["read", "write"] = "write") -> StorageUnavailable:
    """Return `error` as a message for users that says how to fix it."""
    if isinstance(error, StorageUnavailable):
        return error
    text = str(error)
    if isinstance(error, UnsafePath):
        advice = f"The history is not used, because {error.filename} is unsafe: {error.strerror}. Move it or choose another `data_dir`"
    elif "full" in text or "No space" in text:
        advice = f"The disk that holds the history ({path}) is full: free some space"
    elif "locked" in text:
        advice = f"Another process keeps the history ({path}) locked: end it, or wait until it has finished"
    elif "readonly" in text or "unable to open" in text or isinstance(error, PermissionError):
        advice = f"Cannot open the history ({path}) for writing ({text}): make the file and its folder writable for this user"
    else:
        advice = f"Cannot {action} the history ({path}): {text}. Check the disk that holds it"
    if action == "read":
        return StorageUnavailable(advice)
    return StorageUnavailable(f"{advice}. Until then asynchronous tasks are rejected; synchronous tasks still run.")
