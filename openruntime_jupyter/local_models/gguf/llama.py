"""Configuration of mlx-lm's llama model from a GGUF header. The module does not import MLX, because the server uses it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openruntime_jupyter.local_models.folder import NotAModel, Shape, cache_numbers
from openruntime_jupyter.local_models.gguf.header import Header, Tensor, read_header

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
    config = configuration(header)
    numbers = sum(tensor.numbers for tensor in header.tensors.values())
    weights = sum(tensor.bytes for tensor in header.tensors.values())
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


def mlx_name(name: str) -> str | None:
    """Return the name of a tensor (or its scales or biases) in mlx-lm; None if its llama does not have it."""
    *prefix, part, kind = name.split(".")
    if not prefix:
        return f"{OUTER[part]}.{kind}" if part in OUTER else None
    if len(prefix) == 2 and prefix[0] == "blk" and part in INNER:
        return f"model.layers.{prefix[1]}.{INNER[part]}.{kind}"
    return None


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
