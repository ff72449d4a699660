"""Layout of an array file: the header of a safetensors file with one array. Needs neither NumPy nor a file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, get_args

from openruntime_jupyter.errors import InvalidRequest, gigabytes
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


def check_bounds(shape: list[int] | tuple[int, ...], dtype: str, kind: ArrayKind = "numpy") -> Layout:
    """Return `Layout(...)`; raise `InvalidRequest` if it is invalid."""
    try:
        return Layout(tuple(shape), dtype, kind)
    except BadTensor as problem:
        raise InvalidRequest.of("array", str(problem)) from None
