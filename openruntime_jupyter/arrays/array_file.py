"""Array files: safetensors with one array, whose data begin on a page boundary so that they can be memory-mapped.

The module does not import NumPy, because the server reads only headers. A file has its full size on disk before its content is written
(it is never sparse), and does not change after that while a process leases it. So accessing the mapped file can never fault.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.arrays.array_layout import LENGTH, BadTensor, Layout, header_length, layout_of
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, StorageUnavailable, gigabytes

CHECKED_BYTES = 1 << 20
"""Bytes of one step of a check, which takes a millisecond."""
RETRY_SECONDS = (0.01, 0.1)
"""Delays in seconds before each retry after free blocks were deleted."""


def read(descriptor: int, name: str) -> Layout:
    """Read the layout of an open array file and check the size of the file.

    Raises `ArrayNotFound` if the file is damaged or truncated.
    """
    try:
        layout = layout_of(os.pread(descriptor, header_length(os.pread(descriptor, LENGTH, 0)), LENGTH))
    except BadTensor as problem:
        raise ArrayNotFound(f"The array {name} is damaged: {problem}") from None
    size = os.fstat(descriptor).st_size
    if size < layout.size:
        raise ArrayNotFound(f"The array {name} is damaged: its file has {size:,} of {layout.size:,} bytes")
    return layout


def check_bool(path: Path, layout: Layout) -> None:
    """Raise `InvalidRequest` if an element of a file with bool elements is not 0 or 1: programs compute different values with others."""
    with path.open("rb") as file:
        file.seek(layout.offset)
        position = 0
        while piece := file.read(CHECKED_BYTES):
            if others := piece.translate(None, b"\0\1"):
                index = position + piece.index(others[:1])
                raise InvalidRequest.of("body", f"element {index} of the bool array has the byte {others[0]}: use 0 or 1")
            position += len(piece)


def open_for_reading(path: str | Path, name: str) -> int:
    """Open and lease an array file; return the descriptor. The file does not change while the descriptor or a mapping of it is open.

    Raises `ArrayNotFound` if the file no longer exists.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as problem:
        raise ArrayNotFound(
            f"The array {name} no longer exists ({problem.strerror}): deleted, expired, or its folder was emptied. Send it again."
        ) from None
    if not blocks.lease(descriptor, path):
        os.close(descriptor)
        raise ArrayNotFound(f"The array {name} is being deleted. Send it again.")
    return descriptor


def make(path: Path, layout: Layout, room: int | None = None) -> int:
    """Create a file for `layout` in its full size, readable only by its owner; return its descriptor. Reuse a free block if one fits.

    `room` is the maximum size in bytes of a new file for which no free blocks are deleted; None for no limit. Raises
    `StorageUnavailable` with the sizes if the disk is full, and removes the file. Raises FileExistsError if it exists.
    """
    try:
        descriptor = blocks.take(path, layout.size)
        if descriptor is None:
            if room is not None and layout.size > room:
                blocks.give_back(path.parent, layout.size - room)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise
    except OSError as problem:
        raise no_room(layout.size, path.parent, problem) from problem
    try:
        os.fchmod(descriptor, 0o600)
        _take_room(descriptor, layout.size, path.parent)
        os.pwrite(descriptor, layout.header(), 0)
    except BaseException as problem:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if isinstance(problem, OSError):
            raise no_room(layout.size, path.parent, problem) from problem
        raise
    return descriptor


def _take_room(descriptor: int, size: int, folder: Path) -> None:
    for pause in RETRY_SECONDS:
        try:
            return blocks.take_room(descriptor, os.fstat(descriptor).st_size, size)
        except OSError as problem:
            if problem.errno != errno.ENOSPC or not blocks.give_back(folder, size):
                raise
            time.sleep(pause)  # a process that is preparing a block takes a moment to notice that the block was deleted
    return blocks.take_room(descriptor, os.fstat(descriptor).st_size, size)


def no_room(size: int, folder: Path, problem: OSError) -> StorageUnavailable:
    """Return the error for a file of `size` bytes that could not be created in `folder`."""
    if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
        return StorageUnavailable(f"Array can't be stored in {folder} ({problem.strerror}): make that folder writable for this user")
    left = ""
    try:
        disk = os.statvfs(folder)
        left = f", which has {gigabytes(disk.f_bavail * disk.f_frsize)} left"
    except OSError:
        pass
    return StorageUnavailable(
        f"An array of {gigabytes(size)} does not fit into {folder}{left} ({problem.strerror}): delete arrays that are no longer needed, "
        "or choose a folder on a larger disk with the setting spool_dir",
        retry_after=10.0,
    )
