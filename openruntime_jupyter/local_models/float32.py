"""Conversion of weights to float32. On a CPU only float32 uses BLAS, which is several times faster than quantised or half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from openruntime_jupyter.local_models.gguf.conversions import Conversions
from openruntime_jupyter.local_models.language_model import weights_of


def convert(model: Any, source: Path, conversions: Conversions | None = None) -> None:
    """Convert the lazily loaded `model` to float32 without evaluating it.

    Converting a quantised model takes seconds, so `conversions` caches the result for the weight file `source`.
    """
    packed = [module for _, module in model.named_modules() if "scales" in module]
    for module in packed:
        for name in ("scales", "biases"):
            if (values := module.get(name)) is not None and mx.issubdtype(values.dtype, mx.floating):
                module[name] = values.astype(mx.float32)
    if packed:
        from mlx_lm.utils import dequantize_model

        dequantize_model(model)
    model.update(tree_map(_wide, model.parameters()))
    if not packed or conversions is None:
        return
    weights = weights_of(model)
    kept = conversions.find(source, {name: weight.shape for name, weight in weights.items()})
    if kept is not None:
        model.load_weights(list(kept.items()), strict=True)
    else:
        conversions.keep(source, weights)


def _wide(weight: Any) -> Any:
    return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) and weight.dtype != mx.float32 else weight
