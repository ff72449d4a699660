"""Loading of GGUF files as mlx-lm models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
from mlx import nn

from openruntime_jupyter.local_models.conversions import Conversions
from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.local_models.gguf_file import ATTENTION, INNER, MLP, ROPE_FACTORS, Header, configuration, mlx_name, read_header
from openruntime_jupyter.local_models.gguf_tokenizer import build_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

GROUP_SIZE = 32
"""Number of weights that share a scale, in every loadable quantised type."""

Form = Literal["float32", "stored"]
"""`float32`: all weights in float32, for BLAS; `stored`: as in the file, possibly quantised."""


def load_gguf(path: str | Path, dtype: Form = "stored", cache_dir: str | Path | None = None) -> tuple[Any, TokenizerWrapper]:
    """Load model and tokenizer (with the chat template) of a llama-family GGUF file, like `mlx_lm.load` for a folder.

    `cache_dir` is the cache folder for weights converted to float32; without it they are converted each time. Raises `NotAModel` with the
    cause. The weights are in memory when the function returns.
    """
    from mlx_lm.models.llama import Model, ModelArgs

    header = read_header(path, lists=True)
    config = configuration(header)
    tokenizer = build_tokenizer(header)
    arguments: Any = ModelArgs
    model = Model(arguments.from_dict(config))
    weights = _float32(header, cache_dir) if dtype == "float32" else _stored(header, model)
    if (factors := weights.pop(ROPE_FACTORS, None)) is not None:
        for layer in model.layers:
            layer.self_attn.rope = _FactoredRoPE(config["head_dim"], config["rope_theta"], factors)
    model.load_weights(list(_with_zero_biases(weights, config).items()))
    model.eval()
    mx.eval(model.parameters())
    return model, tokenizer


class _FactoredRoPE(nn.Module):  # type: ignore[misc, name-defined]
    """Rotary positions with one factor per frequency."""

    def __init__(self, dims: int, base: float, factors: mx.array) -> None:
        super().__init__()
        self.dims = dims
        # The underscore keeps it out of the parameters to load.
        self._periods = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims) * factors.astype(mx.float32)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        return mx.fast.rope(x, self.dims, traditional=True, base=None, scale=1.0, offset=offset, freqs=self._periods)


def _read(header: Header) -> dict[str, mx.array]:
    """Return the weights as MLX reads them; quantised ones are packed, with `.scales` and `.biases`."""
    try:
        read: Any = mx.load(str(header.path), format="gguf")
        return dict(read)
    except RuntimeError as problem:
        raise NotAModel(f"MLX can't read {header.path}: {problem}") from None


def _float32(header: Header, cache_dir: str | Path | None) -> dict[str, mx.array]:
    conversions = None if cache_dir is None else Conversions(Path(cache_dir))
    shapes = {mlx_name(name): tensor.shape for name, tensor in header.tensors.items()}
    if conversions is not None and (kept := conversions.find(header.path, shapes)) is not None:
        return kept
    raw = _read(header)
    weights = {}
    for name, tensor in header.tensors.items():
        whole, ours = raw.pop(name), mlx_name(name)
        if (bits := tensor.encoding.bits) is not None:
            base = name.removesuffix("weight")
            scales, biases = (raw.pop(base + part).astype(mx.float32) for part in ("scales", "biases"))
            whole = mx.dequantize(whole, scales, biases, group_size=GROUP_SIZE, bits=bits)
        weights[ours] = whole.astype(mx.float32)
        mx.eval(weights[ours])  # one by one, so that each packed weight is freed before the next one is unpacked
        del whole
    if conversions is not None:
        conversions.keep(header.path, weights)
    return weights


def _stored(header: Header, model: Any) -> dict[str, mx.array]:
    raw = _read(header)
    bits = {mlx_name(name).removesuffix(".weight"): tensor.encoding.bits for name, tensor in header.tensors.items() if tensor.encoding.bits}
    if bits:
        nn.quantize(  # type: ignore[attr-defined]
            model,
            GROUP_SIZE,
            class_predicate=lambda path, module: {"group_size": GROUP_SIZE, "bits": bits[path]} if path in bits else False,
        )
    # Activations take the dtype of the scales and norms. A GPU accumulates float16 in 32 bits. The CPU does not, which is slow and too
    # inaccurate to generate text.
    half = any(tensor.encoding.name != "F32" for tensor in header.tensors.values() if len(tensor.shape) > 1)
    between = mx.float16 if half and mx.default_device() == mx.Device(mx.gpu) else mx.float32
    weights = {}
    for name, value in raw.items():
        small = name != ROPE_FACTORS and (name not in header.tensors or len(header.tensors[name].shape) == 1)
        weights[mlx_name(name)] = value.astype(between) if small else value
    return weights


def _with_zero_biases(weights: dict[str, mx.array], config: dict[str, Any]) -> dict[str, mx.array]:
    """Add zeros for missing biases: mlx-lm's llama has biases in all projections or in none, a file may have some."""
    parts = (ATTENTION if config["attention_bias"] else ()) + (MLP if config["mlp_bias"] else ())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    rows = {"attn_q": queries, "attn_k": keys, "attn_v": keys, "ffn_gate": inner, "ffn_up": inner}
    kind = weights["model.norm.weight"].dtype
    for layer in range(config["num_hidden_layers"]):
        for part in parts:
            weights.setdefault(f"model.layers.{layer}.{INNER[part]}.bias", mx.zeros(rows.get(part, hidden), kind))
    return weights
