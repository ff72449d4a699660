"""Array files: safetensors with one array, whose data begin on a page boundary so that they can be memory-mapped.

The module does not import NumPy, because the server reads only headers. A file has its full size on disk before its content is written
(it is never sparse), and does not change after that while a process leases it. So accessing the mapped file can never fault.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from openruntime_jupyter.arrays import blocks
from openruntime_jupyter.errors import ArrayNotFound, InvalidRequest, StorageUnavailable, gigabytes
from openruntime_jupyter.schemas.values import ArrayKind

ALIGNMENT = 16_384
"""The data begin at a multiple of this many bytes, the largest page size of supported machines (Apple silicon)."""
LENGTH = 8
"""Bytes of the little-endian number that holds the length of the header."""
MAX_HEADER = 1 << 20
"""Maximum length of a header in bytes; the header of one array has about a hundred."""
MAX_DIMENSIONS = 32
MAX_SIDE = 2**48
MAX_BYTES = 2**48
NAME = "array"
CHECKED_BYTES = 1 << 20
"""Bytes of one step of a check, which takes a millisecond."""
RETRY_SECONDS = (0.01, 0.1)
"""Delays in seconds before each retry after free blocks were deleted."""

CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""The element types of MLX, and their names in safetensors."""
SIZES = {name: 1 if name == "bool" else int("".join(filter(str.isdigit, name))) // 8 for name in CODES}
"""Bytes of one element."""
NAMES = {code: name for name, code in CODES.items()}
KINDS: tuple[ArrayKind, ...] = get_args(ArrayKind)


class BadTensor(ValueError):
    """Invalid or unsupported safetensors data; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of an array file: little-endian elements in C order, starting at `offset`. Sizes are in bytes."""

    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind = "numpy"

    def __post_init__(self) -> None:
        if self.dtype not in SIZES:
            raise BadTensor(f"unknown dtype {self.dtype!r}; supported: {', '.join(SIZES)}")
        if self.kind not in KINDS:
            raise BadTensor(f"unknown kind {self.kind!r}; supported: {', '.join(KINDS)}")
        if len(self.shape) > MAX_DIMENSIONS:
            raise BadTensor(f"{len(self.shape)} dimensions exceed the maximum of {MAX_DIMENSIONS}")
        if any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in self.shape):
            raise BadTensor(f"invalid shape {list(self.shape)}: use integers from 0 to {MAX_SIDE}")
        if self.nbytes > MAX_BYTES:
            raise BadTensor(f"{gigabytes(self.nbytes)} exceed the maximum of {gigabytes(MAX_BYTES)}")

    @property
    def nbytes(self) -> int:
        """Return the size of the elements in bytes."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def offset(self) -> int:
        """Return the position of the first element in bytes."""
        return len(self.header())

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.offset + self.nbytes

    def header(self) -> bytes:
        """Return everything before the elements, padded with spaces as safetensors allows."""
        described = {
            "__metadata__": {"openruntime": self.kind},
            NAME: {"dtype": CODES[self.dtype], "shape": list(self.shape), "data_offsets": [0, self.nbytes]},
        }
        text = json.dumps(described, separators=(",", ":")).encode()
        length = -(-(LENGTH + len(text)) // ALIGNMENT) * ALIGNMENT - LENGTH
        return length.to_bytes(LENGTH, "little") + text.ljust(length)


def header_length(prefix: bytes) -> int:
    """Return the length of the JSON header from the first 8 bytes; raise `BadTensor` if it is invalid or over `MAX_HEADER`."""
    length = int.from_bytes(prefix[:LENGTH], "little")
    if len(prefix) < LENGTH or not 2 <= length <= MAX_HEADER:
        raise BadTensor("not a safetensors file: the first 8 bytes are not a valid header length")
    return length


def layout_of(text: bytes) -> Layout:
    """Parse a safetensors header; raise `BadTensor` unless it has exactly one array that begins right after the header."""
    try:
        described: dict[str, Any] = json.loads(text)
        metadata = described.pop("__metadata__", None) or {}
        if len(described) != 1:
            raise BadTensor(f"the file has {len(described)} arrays: send one file for each array")
        (entry,) = described.values()
        shape, code, (begin, end) = tuple(entry["shape"]), str(entry["dtype"]), entry["data_offsets"]
        kind = metadata.get("openruntime", "numpy")
    except BadTensor:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise BadTensor(f"unreadable safetensors header ({type(problem).__name__}: {problem})") from None
    if code not in NAMES:
        raise BadTensor(f"unknown dtype {code!r}; supported: {', '.join(NAMES)}")
    layout = Layout(shape, NAMES[code], kind if kind in KINDS else "numpy")
    if begin != 0 or end != layout.nbytes:
        raise BadTensor(f"the header declares bytes {begin} to {end}, but this shape and dtype need {layout.nbytes}")
    return layout


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


def check_bounds(shape: list[int] | tuple[int, ...], dtype: str, kind: ArrayKind = "numpy") -> Layout:
    """Return `Layout(...)`; raise `InvalidRequest` if it is invalid."""
    try:
        return Layout(tuple(shape), dtype, kind)
    except BadTensor as problem:
        raise InvalidRequest.of("array", str(problem)) from None
