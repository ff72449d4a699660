"""Locks between processes: runtime locks, which show that a runtime is alive, and locks on device slots.

All of them are flocks. The kernel frees a flock when its holder dies for any reason, so no lock can be stale, and neither process ids
nor clocks are needed.
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
"""Maximum number of attempts if other processes keep replacing the lock file."""

HOLDER_BYTES = 4096
"""Size to which a holder's JSON is padded, so that each write replaces the previous one completely."""
LONGEST_TEXT = 100
FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05
"""Maximum seconds between two attempts to lock a busy slot; the pause starts short, for short tasks."""

_open_locks: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """Lock file that is kept open between uses. No method blocks.

    A file that was removed or replaced is opened again, so that two processes never hold the same lock on two different files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mode = FILE_MODE
        self.held = False
        self._descriptor = -1
        self._identity = (-1, -1)
        _open_locks.add(self)

    def try_lock(self) -> bool:
        """Acquire the lock if it is free and return whether it is held; raise `OSError` if the file cannot be opened."""
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
        raise OSError(f"{self.path} is replaced continuously by other processes")

    def unlock(self) -> None:
        """Release the lock and keep the file open."""
        if self.held:
            self.held = False
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def write(self, content: bytes) -> None:
        """Replace the beginning of the file. The content is informational, so errors such as a full disk are ignored."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, content, 0)

    def read(self) -> bytes:
        """Return the file's content, which may be another holder's; empty if the file is not open."""
        return os.pread(self._descriptor, HOLDER_BYTES, 0) if self._descriptor >= 0 else b""

    def close(self) -> None:
        """Close the file, which releases the lock. Closing a fork's copy does not release the parent's lock."""
        descriptor, self._descriptor, self.held = self._descriptor, -1, False
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        # Not simply O_CREAT, which Linux rejects for another user's file in a folder like /tmp.
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


def _close_in_child() -> None:
    # A fork shares the lock with its parent and would hold it after the parent's death.
    for lock in tuple(_open_locks):
        with contextlib.suppress(OSError):
            lock.close()


os.register_at_fork(after_in_child=_close_in_child)


def lock_within(lock: LockFile, seconds: float) -> bool:
    """Acquire `lock`, blocking this thread for up to `seconds`; return whether it is held."""
    deadline = time.monotonic() + seconds
    while not lock.try_lock():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


class RuntimeLock:
    """Lock that a runtime holds while it runs; `facts` is information for users and other runtimes."""

    TIMEOUT = 5.0

    def __init__(self, folder: Path, runtime: str, facts: dict[str, Any]) -> None:
        self._folder = folder
        self._facts = facts
        self._lock = LockFile(folder / f"{runtime}.lock")

    def acquire(self) -> None:
        """Acquire the lock, which marks this runtime as alive. May block briefly. Raises `OSError` if the file cannot be created."""
        if self._lock.held:
            return
        private_folder(self._folder)
        # A process that checks whether this runtime is alive holds the lock for microseconds, so retry.
        if not lock_within(self._lock, self.TIMEOUT):
            raise OSError(f"another process holds {self._lock.path}")
        self._lock.write(json.dumps(self._facts).encode())

    def release(self) -> None:
        """Release the lock. The file is removed first, so that no process finds it unlocked."""
        if self._lock.held:
            self._lock.path.unlink(missing_ok=True)
        self._lock.close()


def is_alive(folder: Path, runtime: str) -> bool:
    """Return whether the runtime is alive, i.e. holds its lock. An existing file or process id alone does not count."""
    try:
        descriptor = os.open(folder / f"{runtime}.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        # No permission, or a damaged name: leaving a task pending is better than running it twice.
        return True
    try:
        # Shared, so that two concurrent checks do not mistake each other for the runtime.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def living(folder: Path) -> set[str]:
    """Return the ids of the runtimes that are alive."""
    return {path.stem for path in folder.glob("*.lock") if is_alive(folder, path.stem)}


def remove_dead_locks(folder: Path) -> None:
    """Remove the lock files of dead runtimes."""
    for path in folder.glob("*.lock"):
        lock = LockFile(path)
        # A starting runtime that has not locked its file yet notices the removal and creates another.
        with contextlib.suppress(OSError):
            if lock.try_lock():
                path.unlink(missing_ok=True)
        lock.close()


class DeviceSlotLock:
    """Lock on one slot of a device between all runtimes on the machine.

    It uses two files, the slot and a turnstile. A runtime acquires the turnstile, then the slot, then releases the turnstile. A busy
    runtime that releases the slot and needs it again finds the turnstile held by a waiting one, so no runtime starves. Two tasks of one
    runtime must not use it at the same time.
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
        """Wait for the slot and acquire it; a cancelled wait leaves nothing locked.

        `holder` ({runtime, label, pid, task_id, name}) is shown to other runtimes. Raises `StorageUnavailable` if the lock files cannot
        be used.
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
        """Acquire the slot if it is free and no runtime waits for it; raise `StorageUnavailable` as `acquire` does."""
        try:
            return self._step(holder)
        finally:
            self._turnstile.unlock()

    def update_holder(self, holder: dict[str, Any]) -> None:
        """Update the holder shown to other runtimes, if the slot is held."""
        if self._slot.held:
            self._own = holder
            self._slot.write(self._encode(holder))

    def release(self) -> None:
        """Release the slot if it is held."""
        if self._slot.held:
            self._own = None
            self._slot.write(b" " * HOLDER_BYTES)
            self._slot.unlock()

    def holder(self) -> dict[str, Any] | None:
        """Return the holder of the slot as given to `acquire`; None if the slot is free or the holder unknown."""
        if self._own is not None:
            return self._own
        # While waiting, the slot is known to be held; otherwise check, because a dead holder's data stays in the file.
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
        """Release everything and close the files. They are not removed, because other runtimes may be waiting for them."""
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
                f"Cannot use the device lock {self._slot.path} ({error.strerror or error}): make its folder writable for this user, "
                "choose another `device_lock_dir`, or set `device_lock` to `none`"
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
        # Other users may read a shared folder, so task names are omitted there.
        shown = {
            key: value[:LONGEST_TEXT] if isinstance(value, str) else value
            for key, value in holder.items()
            if not (self._shared and key == "name")
        }
        return json.dumps(shown, ensure_ascii=False).encode(errors="replace").ljust(HOLDER_BYTES)
