"""Properties of a model folder, read without loading the model. The module does not import MLX, because the server uses it too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000
"""Maximum length in bytes of a header, as in safetensors."""
GROUP_SIZE = 64
"""Default number of weights that share a scale."""


class NotAModel(ValueError):
    """Folder or file without a loadable model; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; None for unknown ones. See `ModelSource`."""

    bytes: int
    context_length: int | None = None
    float32_bytes: int | None = None
    cache_numbers: int | None = None


def shape_of(folder: Path) -> Shape:
    """Return the sizes of the model in `folder` from its configuration and weight headers; raise `NotAModel`."""
    config = read_config(folder)
    files = weight_files(folder)
    if not files:
        raise NotAModel(f"{folder} has no model*.safetensors: convert the weights to that format")
    try:
        size = sum(file.stat().st_size for file in files)
        inner = config.get("text_config")
        sizes = {**config, **inner} if isinstance(inner, dict) else config
        return Shape(size, _whole(sizes, "max_position_embeddings"), _float32_bytes(files, config), cache_numbers(sizes))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:  # a damaged header may be any JSON
        raise NotAModel(f"{folder} can't be read: {problem}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of config.json; raise `NotAModel`."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise NotAModel(
            f"{folder} has no config.json: an MLX model is a folder with that file, model*.safetensors and a tokenizer"
        ) from None
    except (OSError, ValueError) as problem:
        raise NotAModel(f"{folder / 'config.json'} can't be read: {problem}") from None
    if not isinstance(config, dict):
        raise NotAModel(f"{folder / 'config.json'} is not a JSON object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that mlx-lm loads."""
    return sorted(folder.glob("model*.safetensors"))


def cache_numbers(config: dict[str, Any]) -> int | None:
    """Return the growth of the key-value cache per token, in numbers: a key and a value for each head of each layer.

    Layers with a sliding window or a state of fixed size do not grow and are not counted. Return None for configurations to which this
    does not apply.
    """
    if "kv_lora_rank" in config:  # keys and values are kept in a compressed form
        return None
    layers, heads = _whole(config, "num_hidden_layers"), _whole(config, "num_attention_heads")
    hidden, kv_heads = _whole(config, "hidden_size"), _whole(config, "num_key_value_heads") or heads
    if layers is None or heads is None or kv_heads is None:
        return None
    head = _whole(config, "head_dim") or (hidden // heads if hidden is not None else None)
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        layers = kinds.count("full_attention")
    return 2 * layers * kv_heads * head if head is not None else None


def _whole(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _float32_bytes(files: list[Path], config: dict[str, Any]) -> int:
    """Return the size of the weights in float32. Quantised weights are packed into integers and have one scale per group."""
    quantization = config.get("quantization")
    settings: dict[str, Any] = quantization if isinstance(quantization, dict) else {}
    usual = _whole(settings, "group_size") or GROUP_SIZE
    count = 0
    for name, elements, packed in _tensors(files):
        base, _, part = name.rpartition(".")
        if part == "scales":
            own = settings.get(base)
            count += elements * ((_whole(own, "group_size") if isinstance(own, dict) else None) or usual)
        elif not packed and part != "biases":
            count += elements
    return 4 * count


def _tensors(files: list[Path]) -> Iterator[tuple[str, int, bool]]:
    """Yield name, number of elements, and True for packed elements."""
    for file in files:
        tensors, _ = read_tensors(file)
        for name, tensor in tensors.items():
            yield name, math.prod(tensor["shape"]), tensor["dtype"] == "U32"


def read_tensors(file: Path) -> tuple[dict[str, Any], int]:
    """Return the descriptions of the tensors in a safetensors file, and the position of their data; raise OSError or ValueError."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"{file.name} is not a safetensors file")
        tensors = json.loads(stream.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length
