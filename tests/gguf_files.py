"""GGUF files with random weights, of many quantised types and architectures, written by the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_twin import add_metadata, tokenizer_metadata, write_file
from tests.tiny_model import SPECIAL

WIDTH, LAYERS, HEADS, KV_HEADS, INNER, EXPERTS = 256, 2, 4, 2, 512, 4
HEAD = WIDTH // HEADS

CONVERTED = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")
"""Types that the `gguf` package can write."""
SCALES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q5_0": (0,), "Q5_1": (0, 2),
    "IQ2_XXS": (0,), "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Other types, whose blocks get random bits, with the places of their 16-bit scales in a block."""
TYPES = (*CONVERTED, *SCALES)
ARCHITECTURES = {
    "llama": "llama-bpe",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "qwen3moe": "qwen2",
    "gemma3": "gpt-2",
    "phi3": "gpt-2",
    "mistral3": "tekken",
}
"""Names of the architectures, each with the splitting rules of its tokenizer."""


def write_gguf(path: Path, tokenizer_of: Path, architecture: str = "llama", kind: str = "F32") -> Path:
    """Write a model with the tokenizer of the MLX folder `tokenizer_of` and matrices of type `kind`."""
    import gguf

    random = np.random.default_rng(0)
    tokens = {**tokenizer_metadata(tokenizer_of), "tokenizer.ggml.pre": ARCHITECTURES[architecture]}
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, {**_metadata(architecture), **tokens})
    for name, shape in _shapes(architecture, len(tokens["tokenizer.ggml.tokens"])).items():
        weight = random.standard_normal(shape, np.float32) * (0.3 if name == "token_embd.weight" else 0.05)
        if name in ("token_embd.weight", "output.weight"):
            weight[: len(SPECIAL)] = 0  # never likely, so that no answer ends early
            writer.add_tensor(name, weight)
        elif len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32) if name.endswith("norm.weight") else weight)
        else:
            type_of = gguf.GGMLQuantizationType[kind]
            data = _random_blocks(shape, kind, random) if kind in SCALES else gguf.quants.quantize(weight, type_of)
            writer.add_tensor(name, data, raw_dtype=type_of)
    return write_file(writer, path)


def _random_blocks(shape: tuple[int, ...], kind: str, random: np.random.Generator) -> np.ndarray:
    import gguf

    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // numbers, size), dtype=np.uint8)
    for place in SCALES[kind]:
        blocks[..., place : place + 2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _metadata(architecture: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context_length": 512,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        "rope.dimension_count": HEAD,
    }
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        values |= {"attention.key_length": HEAD, "attention.value_length": HEAD}
    if architecture in ("gemma3", "phi3"):
        values["attention.sliding_window"] = 128 if architecture == "gemma3" else 0
    if architecture == "qwen3moe":
        values |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": INNER}
    return {f"{architecture}.{name}": value for name, value in values.items()}


def _shapes(architecture: str, vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, WIDTH), "output_norm.weight": (WIDTH,)}
    if architecture != "gemma3":
        shapes["output.weight"] = (vocabulary, WIDTH)
    layer = _layer(architecture)
    return shapes | {f"blk.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()}


def _layer(architecture: str) -> dict[str, tuple[int, ...]]:
    keys = KV_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
        "attn_output.weight": (WIDTH, WIDTH),
    }
    if architecture == "phi3":
        return shapes | {
            "attn_qkv.weight": (WIDTH + 2 * keys, WIDTH),
            "ffn_up.weight": (2 * INNER, WIDTH),
            "ffn_down.weight": (WIDTH, INNER),
        }
    shapes |= {"attn_q.weight": (WIDTH, WIDTH), "attn_k.weight": (keys, WIDTH), "attn_v.weight": (keys, WIDTH)}
    if architecture == "qwen3moe":
        shapes |= {
            "ffn_gate_inp.weight": (EXPERTS, WIDTH),
            "ffn_gate_exps.weight": (EXPERTS, INNER, WIDTH),
            "ffn_up_exps.weight": (EXPERTS, INNER, WIDTH),
            "ffn_down_exps.weight": (EXPERTS, WIDTH, INNER),
        }
    else:
        shapes |= {"ffn_gate.weight": (INNER, WIDTH), "ffn_up.weight": (INNER, WIDTH), "ffn_down.weight": (WIDTH, INNER)}
    if architecture == "qwen2":
        shapes |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    if architecture == "gemma3":
        shapes |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    return shapes
