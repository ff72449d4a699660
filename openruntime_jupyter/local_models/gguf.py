"""GGUF files, read without loading them: sizes, and the memory that llama.cpp needs for them.

llama.cpp checks everything else when it loads a file. The server reads these headers, so every step stays inside limits.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from openruntime_jupyter.local_models.folder import LARGEST, NotAModel, Shape, abilities_of, open_file
from openruntime_jupyter.schemas.values import ModelSource

QUANTISATION = re.compile(r"(UD-)?(I?Q\d\w*|B?F16|F32|MXFP4\w*|TQ\d_\d)", re.IGNORECASE)
"""Conventional suffix of a file name for the type of its weights."""
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""Name of one file of a model in several."""

FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
}
"""llama.cpp's numbers of file types."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
USUAL_ALIGNMENT = 32
LONGEST_HEADER = 50_000_000
"""Maximum length of a header in bytes; the largest vocabularies have 20 MB."""
MOST_ENTRIES = 50_000
"""Maximum number of keys, and of tensors; the largest models have a few thousand."""
MOST_TEXTS = 2_000_000
"""Maximum number of texts in all lists; the largest vocabularies have 260,000 tokens and 600,000 merges."""
TEXTS_AT_ONCE, PAUSE = 10_000, 0.0005
"""Texts that are skipped in 2 ms, and the seconds in which the server's event loop runs after that."""
LONGEST_LIST = 1_000
"""Numbers of a list that is read, such as the heads of each layer; longer ones belong to a tokenizer."""
MOST_DIMENSIONS = 4
PIECE = 1 << 20
"""Bytes that are read at once."""

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF value type numbers and their `struct` formats; 8 is text and 9 a list."""
TEXT, LIST = 8, 9
COUNT = struct.Struct("<Q")

CONTEXT = 8_192
"""Tokens of context that a model is loaded with, if it has as many. llama.cpp allocates the whole key-value cache when it loads."""
NUMBER = 2
"""Bytes of a number in the key-value cache of llama.cpp."""
BUFFERS = 100 << 20
"""Bytes for llama.cpp's library and buffers: 31 MiB measured with a vocabulary of 49,000 tokens, which they grow with."""


def context_for(source: ModelSource, tokens: int) -> int:
    """Return the context, in tokens, to load a model with for `tokens` of prompt and response.

    It is a multiple of `CONTEXT`, so that a growing conversation does not load the model again at each turn, or the whole context of the
    model.
    """
    wanted = max(1, -(-tokens // CONTEXT)) * CONTEXT
    return wanted if source.context_length is None else min(wanted, source.context_length)


def cache_bytes(source: ModelSource, tokens: int) -> int:
    """Return the size in bytes of llama.cpp's key-value cache for `tokens`; 0 if it is unknown."""
    return tokens * (source.cache_numbers or 0) * NUMBER


def memory_for(source: ModelSource, context: int) -> int:
    """Return the bytes that a loaded model needs: file, key-value cache for `context` tokens, and buffers."""
    return (source.bytes or 0) + cache_bytes(source, context) + BUFFERS


def shape_of_gguf(path: Path) -> Shape:
    """Return the sizes of the language model in a GGUF file; raise `NotAModel` if it has none."""
    values = read_header(path)
    family = values.get("general.architecture")

    def number(name: str) -> int | None:
        value = values.get(f"{family}.{name}")
        value = max(value, default=None) if isinstance(value, list) else value
        return value if type(value) is int and 0 < value <= LARGEST else None

    layers, heads, width = number("block_count"), number("attention.head_count"), number("embedding_length")
    if layers is None or values.get("general.type", "model") != "model":
        raise NotAModel(f"{path} has no language model: it may be an adapter, or the vision part of another file")
    if values.get(f"{family}.attention.causal") is False:
        raise NotAModel(f"{path} has a model for embeddings, which can't generate text")
    head = width // heads if width and heads else None
    key, value = number("attention.key_length") or head, number("attention.value_length") or head
    cached = layers * (number("attention.head_count_kv") or heads or 0) * (key + value) if key and value else None
    size = sum(part.stat().st_size for part in parts_of(path))
    template = values.get("tokenizer.chat_template")
    abilities = abilities_of(template if isinstance(template, str) else None)
    return Shape(size, number("context_length"), None, cached, _quantisation(path, values), abilities)


def _quantisation(path: Path, values: Mapping[str, Any]) -> str | None:
    """Return the type of most weights: that in the header, else the one that the name ends with."""
    kind = values.get("general.file_type")
    if type(kind) is int and (known := FILE_TYPES.get(kind)) is not None:
        return known
    _, _, end = path.stem.rpartition(".")
    _, _, last = end.rpartition("-")
    return next((each.upper() for each in (end, last) if QUANTISATION.fullmatch(each)), None)


def parts_of(path: Path) -> list[Path]:
    """Return all files of a model; raise `NotAModel` for another one than the first, and if one is missing."""
    split = PART.fullmatch(path.name)
    if split is None:
        return [path]
    base, number, count = split[1], int(split[2]), int(split[3])
    if number != 1:
        raise NotAModel(f"{path} is part {number} of {count}: give the first part")
    parts = [path.with_name(f"{base}-{each:05}-of-{count:05}.gguf") for each in range(1, min(count, MOST_ENTRIES) + 1)]
    missing = next((part.name for part in parts if not part.exists()), None)
    if missing is not None:
        raise NotAModel(f"{path} is one of {count} parts, and {missing} is missing: download it into the same folder")
    return parts


def read_header(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a GGUF file without long lists, after a check that its tensors begin inside the file.

    Raises `NotAModel` with the cause: not GGUF, truncated or damaged.
    """
    try:
        with open_file(path) as (file, size):
            return _Reader(path, file, size).values()
    except OSError as problem:
        raise NotAModel(f"{path} can't be read: {problem.strerror}") from None


class _Reader:
    """Sequential reader of a header. Every step checks that it stays inside the file and inside the limits."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._data = bytearray()
        self._at = 0
        self._texts_left = MOST_TEXTS

    def values(self) -> dict[str, Any]:
        if not self._size:
            raise NotAModel(f"{self._path} is empty")
        if self._take(4) != MAGIC:
            raise NotAModel(f"{self._path} is not a GGUF file: it does not begin with the letters GGUF")
        version = self._number("<I")
        if version not in VERSIONS:
            raise NotAModel(f"{self._path} has the unsupported GGUF version {version}; supported: 2 and 3, little-endian")
        tensors, keys = self._number("<Q"), self._number("<Q")
        if max(tensors, keys) > MOST_ENTRIES:
            raise self._damaged(f"it declares {tensors:,} tensors and {keys:,} keys")
        values = dict(self._entry() for _ in range(keys))
        last = max((self._offset() for _ in range(tensors)), default=0)
        alignment = values.get("general.alignment", USUAL_ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise self._damaged(f"general.alignment is {alignment!r}")
        if tensors and -(-self._at // alignment) * alignment + last >= self._size:
            raise NotAModel(f"{self._path} is truncated: not all of its weights are in the file. Download it again.")
        return values

    def _entry(self) -> tuple[str, Any]:
        name, kind = self._text(), self._number("<I")
        if kind == TEXT:
            return name, self._text()
        if kind == LIST:
            return name, self._list(name)
        if kind not in SCALARS:
            raise self._damaged(f"the key {name} has a value of the unknown type {kind}")
        return name, self._number(SCALARS[kind])

    def _list(self, name: str) -> list[Any] | None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == TEXT:
            self._skip_texts(count)
            return None
        if kind not in SCALARS:
            raise self._damaged(f"the key {name} is a list of the unknown type {kind}")
        data = self._take(count * struct.calcsize(SCALARS[kind]))
        return list(struct.unpack(f"<{count}{SCALARS[kind][1]}", data)) if count <= LONGEST_LIST else None

    def _skip_texts(self, count: int) -> None:
        self._texts_left -= count
        if self._texts_left < 0:
            raise self._damaged(f"its lists have more than {MOST_TEXTS:,} texts")
        at, length_at = self._at, COUNT.unpack_from
        for number in range(count):  # hot loop: a vocabulary has a hundred thousand entries
            if at + 8 > len(self._data):
                self._require(at + 8)
            if number % TEXTS_AT_ONCE == 0:
                time.sleep(PAUSE)
            at += 8 + length_at(self._data, at)[0]
        self._require(at)
        self._at = at

    def _offset(self) -> int:
        """Read the description of a tensor; return the place of its data."""
        name, dimensions = self._text(), self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
        self._take(8 * dimensions + 4)  # the sides, and the type
        return int(self._number("<Q"))

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", "replace")

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _take(self, size: int) -> bytearray:
        self._require(self._at + size)
        self._at += size
        return self._data[self._at - size : self._at]

    def _require(self, end: int) -> None:
        """Read the file up to the byte `end`. The file is not mapped, because another program may shorten it."""
        if end > self._size:
            raise NotAModel(f"{self._path} is truncated or damaged: its header points past the end of the file. Download it again.")
        if end > LONGEST_HEADER:
            raise self._damaged(f"its header has more than {LONGEST_HEADER:,} bytes")
        while len(self._data) < end:
            piece = self._file.read(max(PIECE, end - len(self._data)))
            if not piece:
                raise NotAModel(f"{self._path} was shortened while it was read: try again")
            self._data += piece

    def _damaged(self, what: str) -> NotAModel:
        return NotAModel(f"{self._path} is damaged: {what}. Download it again.")
