"""Properties of a model folder, read without loading the model. The module does not import MLX, because the server uses it too."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from openruntime_jupyter.schemas.values import ModelAbility

LONGEST_JSON = 4_000_000
"""Maximum length in bytes of a JSON text. Parsing it blocks all threads of the server, for up to 50 ms."""
LONGEST_JSON_OF_FOLDER = 50_000_000
"""Maximum length in bytes of the JSON headers of all weight files of a folder."""
MOST_DIMENSIONS = 8
LARGEST = 2**53
"""Largest valid size. All JSON parsers represent it exactly."""
REASONING = re.compile(r"<think|enable_thinking|reasoning_content|reasoning_effort|\[THINK\]")
"""Parts of the chat templates of models that reason before they answer."""
SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of a model beside its weights."""
GROUP_SIZE = 64
"""Default number of weights that share a scale."""


class NotAModel(ValueError):
    """Folder or file without a loadable model; the message says what is missing."""


class ShapeFields(TypedDict):
    """Fields of a `ModelSource` that its files have."""

    bytes: int
    context_length: int | None
    float32_bytes: int | None
    cache_numbers: int | None
    quantisation: str | None
    abilities: tuple[ModelAbility, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, type of its weights and chat template; None for unknown ones. See `ModelSource`."""

    bytes: int
    context_length: int | None = None
    float32_bytes: int | None = None
    cache_numbers: int | None = None
    quantisation: str | None = None
    abilities: tuple[ModelAbility, ...] = ()

    @property
    def fields(self) -> ShapeFields:
        """Return the fields of a `ModelSource`."""
        return {
            "bytes": self.bytes,
            "context_length": self.context_length,
            "float32_bytes": self.float32_bytes,
            "cache_numbers": self.cache_numbers,
            "quantisation": self.quantisation,
            "abilities": self.abilities,
        }


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
        context, numbers = _whole(sizes, "max_position_embeddings"), _float32_bytes(files, config)
        return Shape(size, context, numbers, cache_numbers(sizes), _quantisation(config), abilities_of(_template(folder)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:  # a damaged header may be any JSON
        raise NotAModel(f"{folder} can't be read: {problem}") from None


def abilities_of(template: str | None) -> tuple[ModelAbility, ...]:
    """Return what a model can do according to its chat template, which is a program that mentions what it formats."""
    if not template:
        return ()
    tools: tuple[ModelAbility, ...] = ("tools",) if re.search(r"\btools\b", template) else ()
    reasoning: tuple[ModelAbility, ...] = ("reasoning",) if REASONING.search(template) else ()
    return ("chat", *tools, *reasoning)


def _quantisation(config: dict[str, Any]) -> str | None:
    quantization = config.get("quantization")
    bits = _whole(quantization, "bits") if isinstance(quantization, dict) else None
    dtype = config.get("dtype") or config.get("torch_dtype")
    return f"{bits} bits" if bits is not None else dtype if isinstance(dtype, str) else None


def _template(folder: Path) -> str | None:
    """Return the chat template of a folder, which is in a separate file or in the configuration of the tokenizer."""
    with contextlib.suppress(OSError, ValueError, RecursionError), open_file(folder / "chat_template.jinja") as (file, _):
        return file.read(LONGEST_JSON).decode()
    with contextlib.suppress(OSError, ValueError, RecursionError), open_file(folder / "tokenizer_config.json") as (file, size):
        settings = json.loads(file.read(LONGEST_JSON)) if size <= LONGEST_JSON else None
        template = settings.get("chat_template") if isinstance(settings, dict) else None
        return json.dumps(template) if isinstance(template, list) else template if isinstance(template, str) else None
    return None


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file and return it with its size; raise OSError, or `NotAModel` for a pipe or device, which may block its reader."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAModel(f"{path} is not a regular file")
        yield file, status.st_size


def read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of config.json; raise `NotAModel`."""
    path = folder / "config.json"
    try:
        with open_file(path) as (file, size):
            if size > LONGEST_JSON:
                raise NotAModel(f"{path} has {size:,} bytes, and at most {LONGEST_JSON:,} are allowed")
            config = json.loads(file.read(LONGEST_JSON))
    except FileNotFoundError:
        raise NotAModel(
            f"{folder} has no config.json: an MLX model is a folder with that file, model*.safetensors and a tokenizer"
        ) from None
    except NotAModel:
        raise
    except (OSError, ValueError, RecursionError) as problem:
        raise NotAModel(f"{path} can't be read: {problem}") from None
    if not isinstance(config, dict):
        raise NotAModel(f"{folder / 'config.json'} is not a JSON object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that mlx-lm loads."""
    return sorted(folder.glob("model*.safetensors"))


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model that its engine loads; raise OSError if the folder is missing."""
    folder.stat()
    return [*(each for name in SETTINGS if (each := folder / name).is_file()), *weight_files(folder)]


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
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST else None


def _float32_bytes(files: list[Path], config: dict[str, Any]) -> int:
    """Return the size of the weights in float32. Quantised weights are packed into integers and have one scale per group."""
    quantization = config.get("quantization")
    settings: dict[str, Any] = quantization if isinstance(quantization, dict) else {}
    usual = _whole(settings, "group_size") or GROUP_SIZE
    count, left = 0, LONGEST_JSON_OF_FOLDER
    for file in files:
        tensors, start = read_tensors(file)
        left -= start
        if left < 0:
            raise ValueError(f"the headers of its weight files have more than {LONGEST_JSON_OF_FOLDER:,} bytes")
        for name, tensor in tensors.items():
            base, _, part = name.rpartition(".")
            if part == "scales":
                own = settings.get(base)
                count += _elements(tensor) * ((_whole(own, "group_size") if isinstance(own, dict) else None) or usual)
            elif tensor["dtype"] != "U32" and part != "biases":  # U32 is packed
                count += _elements(tensor)
    return 4 * count


def _elements(tensor: dict[str, Any]) -> int:
    shape = tensor["shape"]
    if len(shape) > MOST_DIMENSIONS or not all(isinstance(side, int) and 0 <= side <= LARGEST for side in shape):
        raise ValueError(f"invalid shape of a tensor: {str(shape)[:100]}")
    return math.prod(shape)


def read_tensors(file: Path) -> tuple[dict[str, Any], int]:
    """Return the descriptions of the tensors in a safetensors file, and the position of their data.

    Raises OSError, ValueError or RecursionError.
    """
    with open_file(file) as (stream, size):
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"{file.name} is not a safetensors file, or is truncated")
        if length > LONGEST_JSON:
            raise ValueError(f"the header of {file.name} has {length:,} bytes, and at most {LONGEST_JSON:,} are allowed")
        tensors = json.loads(stream.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length
