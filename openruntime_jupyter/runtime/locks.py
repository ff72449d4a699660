"""Locks between processes: who lives, and whose turn it is on a device.

All of them are flocks. The kernel frees a flock when its holder dies, however it dies, so there is no stale lock to clear, no
process id to trust, and no clock to compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import stat
import time
import weakref
from pathlib import Path
from typing import Any

from openruntime_jupyter.errors import StorageUnavailable
from openruntime_jupyter.runtime.permissions import FILE_MODE, private_folder

SHARED_FILE_MODE = 0o666
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ATTEMPTS = 100
"""How often a lock file may be replaced under us before we give up; each replacement needs another process to do it."""

HOLDER_BYTES = 4096
"""A holder's JSON is padded to that, so that one write replaces the one before as a whole."""
LONGEST_TEXT = 100
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05
"""Seconds between two looks at a busy slot; the first looks come sooner, for tasks that are short."""

_open_locks: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """One lock file, kept open between uses. Never blocks.

    A file that was removed or replaced since it was opened is opened anew, so that two processes never hold what they take for
    the same lock on two files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mode = FILE_MODE
        self.held = False
        self._descriptor = -1
        self._identity = (-1, -1)
        _open_locks.add(self)

    def try_lock(self) -> bool:
        """Take the lock if nobody holds it; raises OSError where the file can't be opened."""
        for _ in range(ATTEMPTS):
            if self._descriptor < 0:
                self._open()
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._in_place():
                    return False
            else:
                if self._in_place():
                    self.held = True
                    return True
            self.close()
        raise OSError(f"{self.path} is replaced all the time")

    def unlock(self) -> None:
        """Free the lock, and keep the file open for the next time."""
        if self.held:
            self.held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def write(self, content: bytes) -> None:
        """Replace the beginning of the file. It is for people to read: that a disk is full takes nobody's lock away."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, content, 0)

    def read(self) -> bytes:
        """The file's content, whoever holds the lock; empty if it is not open."""
        return os.pread(self._descriptor, HOLDER_BYTES, 0) if self._descriptor >= 0 else b""

    def close(self) -> None:
        """Close the file, which frees the lock. Also for a fork's copy: closing that leaves the parent its lock."""
        descriptor, self._descriptor, self.held = self._descriptor, -1, False
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        # Not simply O_CREAT: in a folder like /tmp Linux refuses that for another user's file.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self._descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, self.mode)
                os.fchmod(self._descriptor, self.mode)
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, flags)
        found = os.fstat(self._descriptor)
        self._identity = (found.st_dev, found.st_ino)

    def _in_place(self) -> bool:
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


def _leave_to_the_parent() -> None:
    # A fork shares the lock with its parent, and would hold it beyond the parent's death.
    for lock in tuple(_open_locks):
        with contextlib.suppress(OSError):
            lock.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def lock_patiently(lock: LockFile, seconds: float) -> bool:
    """Take `lock`, blocking this thread for up to `seconds`."""
    deadline = time.monotonic() + seconds
    while not lock.try_lock():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


class RuntimeLock:
    """The file that a runtime holds locked as long as it lives; `facts` are for people and other runtimes to read."""

    PATIENCE = 5.0

    def __init__(self, folder: Path, runtime: str, facts: dict[str, Any]) -> None:
        self._folder = folder
        self._facts = facts
        self._lock = LockFile(folder / f"{runtime}.lock")

    def acquire(self) -> None:
        """Say that this runtime lives; blocks for a moment at most. Raises OSError where the file can't be made."""
        if self._lock.held:
            return
        private_folder(self._folder)
        # Somebody who looks whether we live holds it for microseconds: hence the patience.
        if not lock_patiently(self._lock, self.PATIENCE):
            raise OSError(f"another process holds {self._lock.path}")
        self._lock.write(json.dumps(self._facts).encode())

    def release(self) -> None:
        """Say that this runtime is at its end: the file goes first, so that nobody ever finds it unlocked."""
        if self._lock.held:
            self._lock.path.unlink(missing_ok=True)
        self._lock.close()


def lives(folder: Path, runtime: str) -> bool:
    """Whether a runtime holds its lock. Neither a process id nor the file's existence counts."""
    try:
        descriptor = os.open(folder / f"{runtime}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        # Not ours to open: better a task that nobody takes over than one that runs twice.
        return True
    try:
        # Shared, so that two who look at once don't take each other for the living.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def bury_the_dead(folder: Path) -> None:
    """Remove the lock files of runtimes that no longer live."""
    for path in folder.glob("*.lock"):
        lock = LockFile(path)
        # A runtime that has made its file and not locked it yet sees that it is gone, and makes another.
        with contextlib.suppress(OSError):
            if lock.try_lock():
                path.unlink(missing_ok=True)
        lock.close()


class DeviceSlotLock:
    """The right of this runtime, among all on this machine, to compute on one slot of a device.

    Two files: the slot, and a turnstile before it. Who wants the slot first takes the turnstile, then the slot, then leaves the
    turnstile: a busy runtime that frees the slot and wants it back at once finds the turnstile taken by whoever waits, so that
    nobody starves. Not for use by two tasks of one runtime at the same time.
    """

    def __init__(self, folder: Path, device: str, slot: int) -> None:
        self._folder = folder
        self._slot = LockFile(folder / f"{device}.{slot}")
        self._turnstile = LockFile(folder / f"{device}.{slot}.next")
        self._prepared = False
        self._shared = False
        self._waiting = False
        self._own: dict[str, Any] | None = None

    async def acquire(self, holder: dict[str, Any]) -> None:
        """Wait for the slot and hold it; cancelling the wait leaves nothing held.

        `holder` ({runtime, label, pid, task_id, name}) is what the others are told. Raises `StorageUnavailable` where the lock
        files can't be used.
        """
        pause = FIRST_PAUSE
        self._waiting = True
        try:
            while not self._step(holder):
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._waiting = False
            self._turnstile.unlock()

    def try_acquire(self, holder: dict[str, Any]) -> bool:
        """Hold the slot if it is free and nobody waits for it; raises `StorageUnavailable` as `acquire` does."""
        try:
            return self._step(holder)
        finally:
            self._turnstile.unlock()

    def retell(self, holder: dict[str, Any]) -> None:
        """Tell the others something new of who holds the slot; nothing if it is not held."""
        if self._slot.held:
            self._own = holder
            self._slot.write(self._encode(holder))

    def release(self) -> None:
        """Free the slot; nothing if it is not held."""
        if self._slot.held:
            self._own = None
            self._slot.write(b" " * HOLDER_BYTES)
            self._slot.unlock()

    def holder(self) -> dict[str, Any] | None:
        """Who has the slot, in the words given to `acquire`; None if nobody has it, or if it is not known."""
        if self._own is not None:
            return self._own
        # Who waits has just found it taken; anybody else must look, since a dead holder leaves its words behind.
        if not self._waiting:
            try:
                self._prepare()
                if self._slot.try_lock():
                    self._slot.unlock()
                    return None
            except OSError:
                return None
        try:
            return dict(json.loads(self._slot.read()))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Free everything and close the files. They stay: removing a lock file takes it away from those who wait at it."""
        self.release()
        self._slot.close()
        self._turnstile.close()

    def _step(self, holder: dict[str, Any]) -> bool:
        try:
            self._prepare()
            if not (self._turnstile.held or self._turnstile.try_lock()) or not self._slot.try_lock():
                return False
            self._slot.write(self._encode(holder))
        except OSError as error:
            self._slot.unlock()
            self._prepared = False
            raise StorageUnavailable(
                f"The device lock {self._slot.path} can't be used ({error.strerror or error}): make its folder writable for this user, "
                "choose another `device_lock_dir`, or set `device_lock` to `none`."
            ) from error
        self._turnstile.unlock()
        self._own = holder
        return True

    def _prepare(self) -> None:
        if self._prepared:
            return
        try:
            self._shared = bool(self._folder.stat().st_mode & OTHERS_WRITE)
        except FileNotFoundError:
            private_folder(self._folder)
        self._slot.mode = self._turnstile.mode = SHARED_FILE_MODE if self._shared else FILE_MODE
        self._prepared = True

    def _encode(self, holder: dict[str, Any]) -> bytes:
        # Other users may read a shared folder: what a task is called is not for them.
        told = {
            key: value[:LONGEST_TEXT] if isinstance(value, str) else value
            for key, value in holder.items()
            if not (self._shared and key == "name")
        }
        return json.dumps(told, ensure_ascii=False).encode(errors="replace").ljust(HOLDER_BYTES)
