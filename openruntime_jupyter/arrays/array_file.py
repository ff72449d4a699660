"""The file of one array: safetensors, with the data on a page boundary so that it can be mapped.

Plain Python, without NumPy: the server reads headers and never an array. A file has its full size on disk before it has content
(never sparse), and is not changed once it is ready, for as long as anybody leases it: what is mapped can then never fault.
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
"""Where the data begin, or a multiple of it: the largest page of the machines we know (Apple silicon)."""
LENGTH = 8
"""Bytes of the header's length, little-endian."""
MAX_HEADER = 1 << 20
"""Bytes of the longest header that is read: one array's has a hundred."""
MAX_DIMENSIONS = 32
MAX_SIDE = 2**48
MAX_BYTES = 2**48
NAME = "array"
RETRY_SECONDS = (0.01, 0.1)
"""When to try again where free blocks were given back for it."""

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
"""The element types of MLX, and what safetensors calls them."""
SIZES = {name: 1 if name == "bool" else int("".join(filter(str.isdigit, name))) // 8 for name in CODES}
"""Bytes of an element."""
NAMES = {code: name for name, code in CODES.items()}
KINDS: tuple[ArrayKind, ...] = get_args(ArrayKind)


class BadTensor(ValueError):
    """This is no safetensors file of one array that we can hold; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What an array's file holds: little-endian elements in C order, from `offset` on. Sizes are in bytes."""

    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind = "numpy"

    def __post_init__(self) -> None:
        if self.dtype not in SIZES:
            raise BadTensor(f"the dtype is {self.dtype!r}; there are {', '.join(SIZES)}")
        if self.kind not in KINDS:
            raise BadTensor(f"the kind is {self.kind!r}; there are {', '.join(KINDS)}")
        if len(self.shape) > MAX_DIMENSIONS:
            raise BadTensor(f"{len(self.shape)} dimensions; the most is {MAX_DIMENSIONS}")
        if any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in self.shape):
            raise BadTensor(f"the shape is {list(self.shape)}: whole numbers from 0 to {MAX_SIDE} make one")
        if self.nbytes > MAX_BYTES:
            raise BadTensor(f"{gigabytes(self.nbytes)}; the most is {gigabytes(MAX_BYTES)}")

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def offset(self) -> int:
        """Where the elements begin."""
        return len(self.header())

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offset + self.nbytes

    def header(self) -> bytes:
        """What stands before the elements; padded with spaces, as safetensors allows."""
        described = {
            "__metadata__": {"openruntime": self.kind},
            NAME: {"dtype": CODES[self.dtype], "shape": list(self.shape), "data_offsets": [0, self.nbytes]},
        }
        text = json.dumps(described, separators=(",", ":")).encode()
        length = -(-(LENGTH + len(text)) // ALIGNMENT) * ALIGNMENT - LENGTH
        return length.to_bytes(LENGTH, "little") + text.ljust(length)


def header_length(prefix: bytes) -> int:
    """How long the JSON is whose length the first 8 bytes tell; raises `BadTensor` for more than we read."""
    length = int.from_bytes(prefix[:LENGTH], "little")
    if len(prefix) < LENGTH or not 2 <= length <= MAX_HEADER:
        raise BadTensor("this is no safetensors file: its first 8 bytes are no length of a header")
    return length


def layout_of(text: bytes) -> Layout:
    """What a safetensors header says; raises `BadTensor` unless it is of exactly one array, whose elements begin right after it."""
    try:
        described: dict[str, Any] = json.loads(text)
        metadata = described.pop("__metadata__", None) or {}
        if len(described) != 1:
            raise BadTensor(f"there are {len(described)} arrays in this file: send one file for each")
        (entry,) = described.values()
        shape, code, (begin, end) = tuple(entry["shape"]), str(entry["dtype"]), entry["data_offsets"]
        kind = metadata.get("openruntime", "numpy")
    except BadTensor:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise BadTensor(f"the safetensors header can't be read ({type(problem).__name__}: {problem})") from None
    if code not in NAMES:
        raise BadTensor(f"the dtype is {code!r}; there are {', '.join(NAMES)}")
    layout = Layout(shape, NAMES[code], kind if kind in KINDS else "numpy")
    if begin != 0 or end != layout.nbytes:
        raise BadTensor(f"the header says bytes {begin} to {end}, and this shape and dtype take {layout.nbytes}")
    return layout


def read(descriptor: int, name: str) -> Layout:
    """The layout of an open file of ours, whose size is checked: what is mapped after this can't be short.

    Raises `ArrayNotFound` where the file is damaged.
    """
    try:
        found = layout_of(os.pread(descriptor, header_length(os.pread(descriptor, LENGTH, 0)), LENGTH))
    except BadTensor as problem:
        raise ArrayNotFound(f"The array {name} is damaged: {problem}") from None
    size = os.fstat(descriptor).st_size
    if size < found.size:
        raise ArrayNotFound(f"The array {name} is damaged: its file has {size:,} of {found.size:,} bytes")
    return found


def open_for_reading(path: str | Path, name: str) -> int:
    """A descriptor of an array's file, which stays as it is while that, or a mapping made of it, is open.

    Raises `ArrayNotFound` where it has gone.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as problem:
        raise ArrayNotFound(
            f"The array {name} is gone ({problem.strerror}): it was deleted, it was too old, or its folder was emptied. Send it again."
        ) from None
    if not blocks.lease(descriptor, path):
        os.close(descriptor)
        raise ArrayNotFound(f"The array {name} is just being deleted. Send it again.")
    return descriptor


def make(path: Path, layout: Layout, room: int | None = None) -> int:
    """A file of `layout` in its full size, readable by its owner alone; its descriptor. A free block is used where one does.

    `room` is how many bytes a new file may have without free blocks being given back for it, None for any. Raises `StorageUnavailable`
    with figures where there is no room, and leaves nothing then; FileExistsError if it exists.
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
            time.sleep(pause)  # whoever is just making a block takes a moment to see that it is wanted
    return blocks.take_room(descriptor, os.fstat(descriptor).st_size, size)


def no_room(size: int, folder: Path, problem: OSError) -> StorageUnavailable:
    """Why a file of that size could not be made there."""
    if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
        return StorageUnavailable(f"An array can't be stored in {folder} ({problem.strerror}): make that folder usable for this user.")
    left = ""
    try:
        found = os.statvfs(folder)
        left = f", which has {gigabytes(found.f_bavail * found.f_frsize)} left"
    except OSError:
        pass
    return StorageUnavailable(
        f"An array of {gigabytes(size)} does not fit into {folder}{left} ({problem.strerror}): delete arrays that are no longer needed, "
        "or choose a larger folder by the setting spool_dir.",
        retry_after=10.0,
    )


def check_bounds(shape: list[int] | tuple[int, ...], dtype: str, kind: ArrayKind = "numpy") -> Layout:
    """`Layout(...)`, whose complaints become `InvalidRequest`."""
    try:
        return Layout(tuple(shape), dtype, kind)
    except BadTensor as problem:
        raise InvalidRequest.of("array", str(problem)) from None
