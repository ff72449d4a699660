"""Free blocks: files whose memory stays allocated between two arrays, because copying into new memory is several times slower.

A free block is the file of an array that no process leases any more, in a folder beside the arrays. The first process that renames it
owns it. Every reader and writer leases a file with a shared flock, and checks under the lock that the array's name still refers to
that file. A block is freed under the exclusive lock, and renamed before the lock is released. So a file never changes under a process
that uses it, even after crashes: the kernel holds the lock while the file is open or mapped anywhere, and releases it with the last
process. This module does not depend on the content of a file.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

UNFINISHED = ".part"
"""Suffix of incomplete files; abandoned ones are removed."""
FREE = "free"
"""Folder of free blocks, inside the folder of arrays."""
COMING = ".coming"
"""Suffix of a free block that is being prepared."""
SMALLEST = 1 << 20
"""Minimum size in bytes of a file that is kept as a free block."""
NEAR = 4
"""A block is used for an array if their sizes differ by at most 1/NEAR (a quarter) of the array's size."""
PIECE = 4 << 20

_numbers = itertools.count()
_NAME = re.compile(r"(?P<since>\d{20})-(?P<size>\d+)-\d+-\d+")


class Block(NamedTuple):
    """A free block; `size` in bytes, `since` in seconds since the epoch."""

    path: Path
    size: int
    since: float


def lease(descriptor: int, path: str | Path) -> bool:
    """Lease an open file while it is open or mapped; return False if `path` no longer refers to it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        named = os.stat(path, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def leased(path: Path) -> bool:
    """Return whether a process has the file mapped or is writing it; False for a missing file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def retire(path: Path, reuse: bool) -> bool:
    """Delete a file or turn it into a free block; do nothing and return False while a process leases it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        path.unlink(missing_ok=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if reuse and status.st_size >= SMALLEST and status.st_blocks * 512 >= status.st_size:
            os.fchmod(descriptor, 0o600)
            path.rename(_name(path.parent, status.st_size))
        else:
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(descriptor)
    return True


def _name(folder: Path, size: int) -> Path:
    (folder / FREE).mkdir(mode=0o700, exist_ok=True)
    # Sorting by name sorts by age; process id and counter make the name unique.
    return folder / FREE / f"{time.time_ns():020d}-{size}-{os.getpid()}-{next(_numbers)}"


def free(folder: str | Path) -> list[Block]:
    """Return the free blocks of a folder of arrays, oldest first."""
    return _blocks(folder, "")


def _blocks(folder: str | Path, ending: str) -> list[Block]:
    try:
        names = sorted(entry.name for entry in Path(folder, FREE).iterdir())
    except OSError:
        return []
    matches = [(name, _NAME.fullmatch(name.removesuffix(ending))) for name in names if name.endswith(ending)]
    return [Block(Path(folder, FREE, name), int(match["size"]), int(match["since"]) / 1e9) for name, match in matches if match is not None]


def near(size: int, wanted: int) -> bool:
    """Return whether a block of `size` bytes is usable for a file of `wanted` bytes."""
    return abs(size - wanted) * NEAR <= wanted


def fits(folder: str | Path, size: int) -> bool:
    """Return whether a free block is usable for a file of `size` bytes."""
    return size >= SMALLEST and any(near(block.size, size) for block in free(folder))


def take(path: Path, size: int) -> int | None:
    """Rename a free block to `path` and return its descriptor, or None without a block of about `size` bytes.

    The file has at most `size` bytes; the caller allocates the rest with `take_room`. Raises FileExistsError if `path` exists.
    """
    if size < SMALLEST:
        return None
    if os.path.lexists(path):
        raise FileExistsError(path)
    # Youngest first: its memory is most likely still in the CPU caches.
    fitting = [block for block in reversed(free(path.parent)) if near(block.size, size)]
    for block in sorted(fitting, key=lambda block: abs(block.size - size)):
        try:
            block.path.rename(path)
        except FileNotFoundError:  # another process took it first
            continue
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if block.size > size:
            os.ftruncate(descriptor, size)
        return descriptor
    return None


def take_room(descriptor: int, start: int, end: int) -> None:
    """Allocate disk space or memory for a file from byte `start` up to `end`; raise OSError if there is too little."""
    if start >= end:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, end - start)
        return
    _write_zeros(descriptor, start, end, lambda: False)  # macOS has no posix_fallocate; writing allocates


def held(folder: str | Path) -> int:
    """Return the number of bytes that `give_back` can free."""
    return sum(block.size for ending in ("", COMING) for block in _blocks(folder, ending))


def give_back(folder: str | Path, wanted: int) -> int:
    """Delete free blocks, oldest first and those being prepared last, until `wanted` bytes are freed; return the bytes freed."""
    freed = 0
    for block in free(folder) + _blocks(folder, COMING):
        if freed >= wanted:
            break
        try:
            block.path.unlink()
        except FileNotFoundError:
            continue
        freed += block.size
    return freed


def prepare(folder: Path, size: int, stopped: Callable[[], bool]) -> bool:
    """Prepare a free block of `size` bytes with allocated memory.

    Return False if there is too little space, `stopped()` returns True, or another process that needs the space deletes the file.
    """
    try:
        name = _name(folder, size)
    except OSError:  # the folder no longer exists
        return False
    path = name.with_suffix(COMING)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            take_room(descriptor, 0, size)
            if _write_zeros(descriptor, 0, size, lambda: stopped() or not os.fstat(descriptor).st_nlink):
                path.rename(name)
                return True
        finally:
            os.close(descriptor)
    except OSError:  # no space: storing the next array reports it
        pass
    path.unlink(missing_ok=True)
    return False


def _write_zeros(descriptor: int, start: int, end: int, stopped: Callable[[], bool]) -> bool:
    zeros = bytes(PIECE)
    while start < end and not stopped():
        start += os.pwrite(descriptor, memoryview(zeros)[: end - start], start)
    return start >= end


def leases_hold(folder: Path) -> bool:
    """Return whether locks in `folder` belong to the open file; on some network file systems they belong to the process."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=UNFINISHED) as probe:
            fcntl.flock(probe.fileno(), fcntl.LOCK_SH)
            os.close(os.open(probe.name, os.O_RDONLY | os.O_CLOEXEC))
            return leased(Path(probe.name))
    except OSError:
        return False
