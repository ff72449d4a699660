"""Reader of GGUF headers. The module does not import MLX, because the server uses it too.

MLX's reader does not validate a file and can crash the process on a damaged one. A file that passes here is complete and has only types
that MLX reads exactly. (MLX also reads K-quants and BF16, as float16 that can differ from llama.cpp; these are rejected.)
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openruntime_jupyter.local_models.folder import NotAModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
USUAL_ALIGNMENT = 32
MOST_ENTRIES = 65_536
"""Maximum number of keys, and of tensors; the largest models have a few thousand."""
MOST_DIMENSIONS = 4

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF value type numbers and their `struct` formats; 8 is text and 9 a list."""
TEXT, LIST = 8, 9


@dataclass(frozen=True, slots=True)
class Encoding:
    """Storage format of numbers: `block` numbers in `size` bytes; `bits` per quantised weight."""

    name: str
    block: int
    size: int
    bits: int | None = None


ENCODINGS = {
    0: Encoding("F32", 1, 4),
    1: Encoding("F16", 1, 2),
    2: Encoding("Q4_0", 32, 18, 4),
    3: Encoding("Q4_1", 32, 20, 4),
    8: Encoding("Q8_0", 32, 34, 8),
}
"""Loadable encodings by GGUF type number."""
OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Names of the encodings that can't be loaded."""
LOADABLE = ", ".join(encoding.name for encoding in ENCODINGS.values())


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `shape` has the outermost dimension first, as in MLX, and `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int

    @property
    def numbers(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return the size in the file in bytes."""
        return self.numbers // self.encoding.block * self.encoding.size


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a GGUF file: `values` by key (lists only if requested), and the tensors by name."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; raise `NotAModel` if it is invalid, or missing without a default."""
        value = self._value(key, default)
        if type(value) is not int or value < 1:
            raise NotAModel(f"{self.path} has {key} = {value!r}, expected a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number; raise `NotAModel` if it is invalid, or missing without a default."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise NotAModel(f"{self.path} has {key} = {value!r}, expected a positive number")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise NotAModel(f"{self.path} lacks the key {key}: convert the model again with a current convert_hf_to_gguf.py")
        return value


def read_header(path: str | Path, *, lists: bool = False) -> Header:
    """Read and check the header of a GGUF file, and check that the file contains all weights.

    Lists, which only a tokenizer needs, are skipped unless `lists` is true. Raises `NotAModel` with the cause: not GGUF, truncated,
    damaged, or an encoding that can't be loaded.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, lists).header()
    except OSError as problem:
        raise NotAModel(f"{path} can't be read: {problem.strerror}") from None
    except ValueError as problem:
        if isinstance(problem, NotAModel):
            raise
        raise NotAModel(f"{path} is empty") from None  # mmap raises ValueError for an empty file


class _Reader:
    """Sequential reader of a header; every step checks that it stays inside the file."""

    def __init__(self, path: Path, data: mmap.mmap, lists: bool) -> None:
        self._path = path
        self._data = data
        self._lists = lists
        self._at = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise NotAModel(f"{self._path} is not a GGUF file: it does not begin with the letters GGUF")
        version = self._number("<I")
        if version not in VERSIONS:
            raise NotAModel(f"{self._path} has the unsupported GGUF version {version}; supported: 2 and 3, little-endian")
        tensors, keys = self._number("<Q"), self._number("<Q")
        if max(tensors, keys) > MOST_ENTRIES:
            raise self._damaged(f"it declares {tensors:,} tensors and {keys:,} keys")
        values = dict(self._entry() for _ in range(keys))
        described = [self._tensor() for _ in range(tensors)]
        return Header(self._path, values, self._placed(described, values.get("general.alignment", USUAL_ALIGNMENT)))

    def _entry(self) -> tuple[str, Any]:
        name = self._text()
        return name, self._value(self._number("<I"), name)

    def _value(self, kind: int, name: str) -> Any:
        if kind == TEXT:
            return self._text()
        if kind == LIST:
            return self._list(name)
        if kind not in SCALARS:
            raise self._damaged(f"the key {name} has a value of the unknown type {kind}")
        return self._number(SCALARS[kind])

    def _list(self, name: str) -> list[Any] | None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == TEXT:
            return self._texts(count)
        if kind not in SCALARS:
            raise self._damaged(f"the key {name} is a list of the unknown type {kind}")
        size = struct.calcsize(SCALARS[kind])
        self._must_have(count * size)
        values = struct.unpack_from(f"<{count}{SCALARS[kind][1]}", self._data, self._at) if self._lists else ()
        self._at += count * size
        return list(values) if self._lists else None

    def _texts(self, count: int) -> list[str] | None:
        self._must_have(8 * count)
        if self._lists:
            return [self._text() for _ in range(count)]
        data, length_at, at, end = self._data, struct.Struct("<Q").unpack_from, self._at, len(self._data)
        for _ in range(count):  # hot loop: a vocabulary has a hundred thousand entries
            if at + 8 > end:
                break
            at += 8 + length_at(data, at)[0]
        self._at = min(at, end)
        self._must_have(0 if at <= end else 1)
        return None

    def _tensor(self) -> tuple[str, tuple[int, ...], Encoding, int]:
        name = self._text()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
        sides = tuple(self._number("<Q") for _ in range(dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in ENCODINGS:
            stored = OTHERS.get(kind, f"the unknown type {kind}")
            raise NotAModel(f"{self._path} stores {name} as {stored}, which can't be loaded: use a file with {LOADABLE}")
        if min(sides) < 1 or math.prod(sides) > 2**48 or sides[0] % ENCODINGS[kind].block:
            raise self._damaged(f"the tensor {name} has the shape {list(reversed(sides))} as {ENCODINGS[kind].name}")
        return name, sides[::-1], ENCODINGS[kind], offset

    def _placed(self, described: list[tuple[str, tuple[int, ...], Encoding, int]], alignment: Any) -> dict[str, Tensor]:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        tensors = {name: Tensor(name, shape, encoding, start + offset) for name, shape, encoding, offset in described}
        if len(tensors) < len(described):
            raise self._damaged("two tensors have the same name")
        for tensor in tensors.values():
            if tensor.offset % alignment:
                raise self._damaged(f"the tensor {tensor.name} does not begin at a multiple of {alignment}")
        missing = max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=0) - len(self._data)
        if missing > 0:
            raise NotAModel(f"{self._path} is truncated: {missing:,} bytes of its weights are missing. Download it again.")
        return tensors

    def _text(self) -> str:
        length = self._number("<Q")
        raw = self._take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the text at byte {self._at - length:,} is not valid UTF-8") from None

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _take(self, size: int) -> bytes:
        self._must_have(size)
        self._at += size
        return self._data[self._at - size : self._at]

    def _must_have(self, size: int) -> None:
        if self._at + size > len(self._data):
            raise NotAModel(f"{self._path} is truncated or damaged: its header points past the end of the file. Download it again.")

    def _damaged(self, what: str) -> NotAModel:
        return NotAModel(f"{self._path} is damaged: {what}. Download it again.")
