"""Weights as 32-bit numbers: on a CPU only they go through BLAS, which is several times as fast as quantised or half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from openruntime_jupyter.local_models.gguf.conversions import Conversions
from openruntime_jupyter.local_models.language_model import weights_of


def convert(model: Any, source: Path, conversions: Conversions | None = None) -> None:
    """Turn the lazily loaded `model` into float32, still lazy.

    A quantised one takes seconds to convert, so what becomes of it is kept by `conversions` under the file `source` of its weights.
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
