"""GGUF files: header, and configuration of mlx-lm's llama from it. The module does not import MLX, because the server uses it too.

MLX's reader does not validate a file and can crash the process on a damaged one. A file that passes here is complete and has only types
that MLX reads exactly. (MLX also reads K-quants and BF16, as float16 that can differ from llama.cpp; these are rejected.)
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from openruntime_jupyter.local_models.folder import NotAModel, Shape, cache_numbers, open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
USUAL_ALIGNMENT = 32
LONGEST_HEADER = 50_000_000
"""Maximum length of a header in bytes; the largest vocabularies have 20 MB."""
MOST_ENTRIES = 20_000
"""Maximum number of keys, and of tensors; the largest models have a few thousand."""
MOST_TEXTS = 2_000_000
"""Maximum number of texts in all lists; the largest vocabularies have 260,000 tokens and 600,000 merges."""
TEXTS_AT_ONCE, PAUSE = 10_000, 0.0005
"""Texts that are skipped in 2 ms, and the seconds in which the server's event loop runs after that."""
MOST_DIMENSIONS = 4
PIECE = 1 << 20
"""Bytes that are read at once."""

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF value type numbers and their `struct` formats; 8 is text and 9 a list."""
TEXT, LIST = 8, 9
COUNT = struct.Struct("<Q")


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


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `shape` has the outermost dimension first, as in MLX, and `offset` counts from the end of the header."""

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
        value = self.number(key, default)
        if not isinstance(value, int):
            raise NotAModel(f"{self.path} has {key} = {value!r}, expected a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive finite number; raise `NotAModel` if it is invalid, or missing without a default."""
        value = self.values.get(key, default)
        if value is None:
            raise NotAModel(f"{self.path} lacks the key {key}: convert the model again with a current convert_hf_to_gguf.py")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise NotAModel(f"{self.path} has {key} = {value!r}, expected a positive number")
        return value


def read_header(path: str | Path, *, lists: bool = False) -> Header:
    """Read and check the header of a GGUF file, and check that the file contains all weights.

    Lists, which only a tokenizer needs, are skipped unless `lists` is true. Raises `NotAModel` with the cause: not GGUF, truncated,
    damaged, or an encoding that can't be loaded.
    """
    path = Path(path)
    try:
        with open_file(path) as (file, size):
            return _Reader(path, file, size, lists).header()
    except OSError as problem:
        raise NotAModel(f"{path} can't be read: {problem.strerror}") from None


class _Reader:
    """Sequential reader of a header. Every step checks that it stays inside the file and inside the limits."""

    def __init__(self, path: Path, file: BinaryIO, size: int, lists: bool) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._lists = lists
        self._data = bytearray()
        self._at = 0
        self._texts_left = MOST_TEXTS

    def header(self) -> Header:
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
        described = {tensor.name: tensor for tensor in (self._tensor() for _ in range(tensors))}
        if len(described) < tensors:
            raise self._damaged("two tensors have the same name")
        self._check_places(described, values.get("general.alignment", USUAL_ALIGNMENT))
        return Header(self._path, values, described)

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
            return self._texts(count)
        if kind not in SCALARS:
            raise self._damaged(f"the key {name} is a list of the unknown type {kind}")
        data = self._take(count * struct.calcsize(SCALARS[kind]))
        return list(struct.unpack(f"<{count}{SCALARS[kind][1]}", data)) if self._lists else None

    def _texts(self, count: int) -> list[str] | None:
        self._texts_left -= count
        if self._texts_left < 0:
            raise self._damaged(f"its lists have more than {MOST_TEXTS:,} texts")
        if self._lists:
            return [self._text() for _ in range(count)]
        at, length_at = self._at, COUNT.unpack_from
        for number in range(count):  # hot loop: a vocabulary has a hundred thousand entries
            if at + 8 > len(self._data):
                self._require(at + 8)
            if number % TEXTS_AT_ONCE == 0:
                time.sleep(PAUSE)
            at += 8 + length_at(self._data, at)[0]
        self._require(at)
        self._at = at
        return None

    def _tensor(self) -> Tensor:
        name = self._text()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {dimensions} dimensions")
        sides = tuple(self._number("<Q") for _ in range(dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in ENCODINGS:
            stored, loadable = OTHERS.get(kind, f"the unknown type {kind}"), ", ".join(each.name for each in ENCODINGS.values())
            raise NotAModel(f"{self._path} stores {name} as {stored}, which can't be loaded: use a file with {loadable}")
        if min(sides) < 1 or math.prod(sides) > 2**48 or sides[0] % ENCODINGS[kind].block:
            raise self._damaged(f"the tensor {name} has the shape {list(reversed(sides))} as {ENCODINGS[kind].name}")
        return Tensor(name, sides[::-1], ENCODINGS[kind], offset)

    def _check_places(self, tensors: dict[str, Tensor], alignment: Any) -> None:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}")
        for tensor in tensors.values():
            if tensor.offset % alignment:
                raise self._damaged(f"the tensor {tensor.name} does not begin at a multiple of {alignment}")
        start = -(-self._at // alignment) * alignment
        missing = start + max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=0) - self._size
        if missing > 0:
            raise NotAModel(f"{self._path} is truncated: {missing:,} bytes of its weights are missing. Download it again.")

    def _text(self) -> str:
        raw = self._take(self._number("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the text at byte {self._at - len(raw):,} is not valid UTF-8") from None

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


ARCHITECTURE = "llama"

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF names of the parts of a model and of each layer, and the names in mlx-lm."""
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP = ("ffn_gate", "ffn_up", "ffn_down")
ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of Llama 3.1 and later with one factor per frequency, written by the converter."""


def shape_of_gguf(path: Path) -> Shape:
    """Return the sizes of the model in a GGUF file from its header; raise `NotAModel` if it can't be loaded."""
    header = read_header(path)
    config, tensors = configuration(header), header.tensors.values()
    numbers, weights = sum(tensor.numbers for tensor in tensors), sum(tensor.bytes for tensor in tensors)
    return Shape(weights, config["max_position_embeddings"], 4 * numbers, cache_numbers(config))


def configuration(header: Header) -> dict[str, Any]:
    """Return the arguments of mlx-lm's llama and check every tensor against them; raise `NotAModel`."""
    family = header.values.get("general.architecture")
    if family != ARCHITECTURE:
        raise NotAModel(f"{header.path} has the unsupported architecture {family!r}; GGUF files must be of the {ARCHITECTURE} family")
    if header.values.get("llama.expert_count"):
        raise NotAModel(f"{header.path} is a mixture of experts, which can't be loaded from a GGUF file: use an MLX folder of the model")
    if "token_embd.weight" not in header.tensors:
        raise NotAModel(f"{header.path} has no token_embd.weight: it is not a complete model (an adapter, or one part of several?)")
    heads = header.whole("llama.attention.head_count")
    hidden = header.whole("llama.embedding_length")
    head = header.whole("llama.attention.key_length", header.whole("llama.rope.dimension_count", max(hidden // heads, 1)))
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": header.whole("llama.block_count"),
        "intermediate_size": header.whole("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.whole("llama.attention.head_count_kv", heads),
        "head_dim": head,
        "rms_norm_eps": header.number("llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": header.whole("llama.context_length"),
        "rope_theta": header.number("llama.rope.freq_base", 10_000.0),
        "rope_traditional": True,  # the converter reorders the rows of q and k for it
        "rope_scaling": _scaling(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": _has_bias(header, ATTENTION),
        "mlp_bias": _has_bias(header, MLP),
    }
    for name, value in (("llama.attention.value_length", head), ("llama.rope.dimension_count", head)):
        if header.whole(name, value) != value:
            raise NotAModel(f"{header.path} has {name} = {header.values[name]}: only {value}, the size of a head, is supported")
    _check_tensors(header, config)
    return config


def _scaling(header: Header) -> dict[str, Any] | None:
    """Return the RoPE scaling in the format of mlx-lm."""
    kind = header.values.get("llama.rope.scaling.type", "linear" if "llama.rope.scale_linear" in header.values else "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise NotAModel(f"{header.path} has the unsupported RoPE scaling {kind!r}: supported are linear scaling and the factors of Llama 3")
    factor = header.number("llama.rope.scaling.factor", header.number("llama.rope.scale_linear", 1.0))
    return None if factor == 1.0 else {"type": "linear", "factor": factor}


def _has_bias(header: Header, parts: tuple[str, ...]) -> bool:
    return any(f"blk.0.{part}.bias" in header.tensors for part in parts)


def mlx_name(name: str) -> str:
    """Return the name of a tensor (or its scales or biases) in mlx-lm. `ROPE_FACTORS` has none and keeps its name."""
    *prefix, part, kind = name.split(".")
    if prefix:
        return f"model.layers.{prefix[1]}.{INNER[part]}.{kind}"
    return f"{OUTER[part]}.{kind}" if part in OUTER else name


def expected(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of such a model by GGUF name, without the optional biases."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    sides = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in sides.items()}
    return shapes


def _check_tensors(header: Header, config: dict[str, Any]) -> None:
    """Raise `NotAModel` unless the tensors of the file match its configuration exactly."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads or config["head_dim"] % 2:
        raise NotAModel(
            f"{header.path} has an invalid combination of {heads} heads, {kv_heads} key heads and head size {config['head_dim']}"
        )
    if config["num_hidden_layers"] > len(header.tensors):  # before creating that many names
        raise NotAModel(f"{header.path} is damaged: {config['num_hidden_layers']:,} layers but {len(header.tensors)} tensors")
    shapes = expected(config)
    for name, shape in shapes.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise NotAModel(f"{header.path} lacks the tensor {name}: it is one part of several, or damaged. Download the complete model.")
        _check_shape(header, tensor, shape)
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS:
            _check_shape(header, tensor, (config["head_dim"] // 2,))
        elif name not in shapes:
            weight = shapes.get(f"{name.removesuffix('.bias')}.weight")
            if weight is None or len(weight) != 2 or not name.startswith("blk."):
                raise NotAModel(f"{header.path} has a tensor {name}, which mlx-lm's llama does not support: the model can't be loaded")
            _check_shape(header, tensor, weight[:1])


def _check_shape(header: Header, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise NotAModel(f"{header.path} is damaged: {tensor.name} has the shape {list(tensor.shape)}, expected {list(shape)}")
