"""GGUF files for tests: a tiny model in any quantisation, written by the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mlx_twin import CONTROL, NAMES

NORMAL = 1
"""Type of a usual token."""


def write_twin(
    folder: Path,
    path: Path,
    kind: str = "F32",
    *,
    values: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model of `folder` as a GGUF file with matrices of `kind` and norms in F32.

    `values` replace or add metadata; None removes a key.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, {**_metadata(config), **tokenizer_metadata(folder), **(values or {})})
    stored = gguf.GGMLQuantizationType[kind]
    for name, weight in _weights(folder, config).items():
        type_of = stored if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, type_of), raw_dtype=type_of)
    return write_file(writer, path)


def write_file(writer: Any, path: Path) -> Path:
    """Write the file of a writer that has all metadata and tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_metadata(writer: Any, metadata: Mapping[str, Any]) -> None:
    """Add values by the type that they have in Python. None is left out."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "llama.rope.dimension_count": head,
        "llama.vocab_size": config["vocab_size"],
    }


def tokenizer_metadata(folder: Path) -> dict[str, Any]:
    """Return the tokenizer of an MLX folder as metadata."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = whole["model"]["vocab"]
    special = {token["content"] for token in whole["added_tokens"] if token["special"]}
    tokens = sorted(ids, key=ids.__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids[settings["bos_token"]],
        "tokenizer.ggml.eos_token_id": ids[settings["eos_token"]],
        "tokenizer.ggml.add_bos_token": False,
    }
    if "chat_template" in settings:
        metadata["tokenizer.chat_template"] = settings["chat_template"]
    return metadata


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the weights by GGUF names, with the halves of each head of q and k interleaved as llama.cpp requires."""
    from safetensors.numpy import load_file

    theirs = {ours: name for name, ours in NAMES.items()}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        base, kind = name.rsplit(".", 1)
        if base in theirs:
            found[f"{theirs[base]}.{kind}"] = weight
            continue
        _, _, layer, inner = base.split(".", 3)
        part = theirs[inner]
        if part in heads:
            halves = weight.reshape(heads[part], 2, -1, *weight.shape[1:])
            found[f"blk.{layer}.{part}.{kind}"] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
        else:
            found[f"blk.{layer}.{part}.{kind}"] = weight
    return found
