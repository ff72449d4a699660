"""Files whose memory stays allocated between two arrays: copying into it costs a fraction of what new memory costs.

A free block is a file in a folder beside the arrays, and belongs to whoever renames it first. It is the file of an array that nobody
leases any more. Every reader and writer leases a file by a shared flock, and looks once it has the lock whether the array's name still
means that file; a block is freed under the exclusive lock, and renamed before that is let go. So nobody's array becomes another one's
under their eyes, however they end: the kernel keeps the lock for as long as the file is open or mapped anywhere, and frees it with the
last process. Nothing here knows what is in a file.
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
"""What a file ends with that is not complete; whoever finds one that is nobody's removes it."""
FREE = "free"
"""The folder of free blocks, in that of the arrays."""
COMING = ".coming"
"""What the file ends with of which a free block is just being made."""
SMALLEST = 1 << 20
"""Bytes of the smallest file that is worth keeping."""
NEAR = 4
"""A block is used for an array whose size differs by no more than this part (a quarter) of the array's."""
PIECE = 4 << 20

LEASE_HEADER = "OpenRuntime-Lease"
LEASED = "flock"
"""What a program sends over HTTP that leases, as told above, each file which it opens by its path."""

_numbers = itertools.count()
_NAME = re.compile(r"(?P<since>\d{20})-(?P<size>\d+)-\d+-\d+")


class Block(NamedTuple):
    """A free block; `size` in bytes, `since` in seconds since the epoch."""

    path: Path
    size: int
    since: float


def lease(descriptor: int, path: str | Path) -> bool:
    """Keep an open file as it is for as long as it is open, or mapped; False where `path` does not mean it any more."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        named = os.stat(path, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def leased(path: Path) -> bool:
    """Whether somebody has the file mapped or is writing it; not where it is gone."""
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
    """Remove a file, or make a free block of it; False, and nothing is done, while somebody leases it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        path.unlink(missing_ok=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if reuse and found.st_size >= SMALLEST and found.st_blocks * 512 >= found.st_size:
            os.fchmod(descriptor, 0o600)
            path.rename(_name(path.parent, found.st_size))
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
    # Sorted by name they are sorted by age; the process and a number make them different.
    return folder / FREE / f"{time.time_ns():020d}-{size}-{os.getpid()}-{next(_numbers)}"


def free(folder: str | Path) -> list[Block]:
    """The free blocks beside the arrays of a folder, oldest first."""
    return _blocks(folder, "")


def _blocks(folder: str | Path, ending: str) -> list[Block]:
    try:
        names = sorted(entry.name for entry in Path(folder, FREE).iterdir())
    except OSError:
        return []
    found = [(name, said) for name in names if (said := _NAME.fullmatch(name.removesuffix(ending))) is not None and name.endswith(ending)]
    return [Block(Path(folder, FREE, name), int(said["size"]), int(said["since"]) / 1e9) for name, said in found]


def near(size: int, wanted: int) -> bool:
    """Whether a file of `size` bytes does for one of `wanted`."""
    return abs(size - wanted) * NEAR <= wanted


def fits(folder: str | Path, size: int) -> bool:
    """Whether a free block does for a file of `size` bytes."""
    return size >= SMALLEST and any(near(block.size, size) for block in free(folder))


def take(path: Path, size: int) -> int | None:
    """Make a free block the file `path`, of at most `size` bytes; its descriptor, or None where there is no block of about that size.

    What it has less is the caller's to add (`take_room`). Raises FileExistsError if there is such a file.
    """
    if size < SMALLEST:
        return None
    if os.path.lexists(path):
        raise FileExistsError(path)
    fitting = [block for block in reversed(free(path.parent)) if near(block.size, size)]  # the youngest first: caches know it best
    for block in sorted(fitting, key=lambda block: abs(block.size - size)):
        try:
            block.path.rename(path)
        except FileNotFoundError:  # somebody else was faster
            continue
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if block.size > size:
            os.ftruncate(descriptor, size)
        return descriptor
    return None


def take_room(descriptor: int, start: int, end: int) -> None:
    """Give a file its room on disk or in memory from byte `start` up to `end`; raises OSError where there is none."""
    if start >= end:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, end - start)
        return
    _write_zeros(descriptor, start, end, lambda: False)  # macOS: room that is written is room that is there


def held(folder: str | Path) -> int:
    """Bytes that `give_back` can give back."""
    return sum(block.size for ending in ("", COMING) for block in _blocks(folder, ending))


def give_back(folder: str | Path, wanted: int) -> int:
    """Remove free blocks, the oldest first and then those that are coming, until at least `wanted` bytes are; how many that were."""
    given = 0
    for block in free(folder) + _blocks(folder, COMING):
        if given >= wanted:
            break
        try:
            block.path.unlink()
        except FileNotFoundError:
            continue
        given += block.size
    return given


def prepare(folder: Path, size: int, stopped: Callable[[], bool]) -> bool:
    """Make a free block of `size` bytes whose memory is there already.

    False where there is no room, `stopped()` says so, or somebody who needs the room has removed the file.
    """
    try:
        name = _name(folder, size)
    except OSError:  # the folder is gone
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
    except OSError:  # no room: an array that comes will be told
        pass
    path.unlink(missing_ok=True)
    return False


def _write_zeros(descriptor: int, start: int, end: int, stopped: Callable[[], bool]) -> bool:
    zeros = bytes(PIECE)
    while start < end and not stopped():
        start += os.pwrite(descriptor, memoryview(zeros)[: end - start], start)
    return start >= end


def leases_hold(folder: Path) -> bool:
    """Whether a lock on a file there belongs to who has it open: on some network folders it belongs to the process, and ends too early."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=UNFINISHED) as probe:
            fcntl.flock(probe.fileno(), fcntl.LOCK_SH)
            os.close(os.open(probe.name, os.O_RDONLY | os.O_CLOEXEC))
            return leased(Path(probe.name))
    except OSError:
        return False
