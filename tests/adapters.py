"""LoRA adapters for tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.gguf_twin import add_metadata, write_file
from tests.tiny_model import HIDDEN, INNER, LAYERS


def write_adapters(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """Write the same adapter of a tiny model's first layer for mlx-lm and for llama.cpp. Other seeds write others of the same size."""
    import gguf
    from safetensors.numpy import save_file

    rank, scale, random = 4, 2.0, np.random.default_rng(seed)
    before, after = (random.standard_normal(shape, np.float32) for shape in ((INNER, rank), (rank, HIDDEN)))
    mlx = folder / "adapter"
    mlx.mkdir(exist_ok=True)
    settings = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["mlp.down_proj"]}
    (mlx / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": settings}))
    weights: dict[str, np.ndarray] = {}
    for number in range(LAYERS):
        layer = f"model.layers.{number}.mlp.down_proj"
        weights |= {f"{layer}.lora_a": before * (number == 0), f"{layer}.lora_b": after * (number == 0)}
    save_file(weights, mlx / "adapters.safetensors")
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    add_metadata(writer, {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": scale * rank})
    writer.add_tensor("blk.0.ffn_down.weight.lora_a", np.ascontiguousarray(before.T))
    writer.add_tensor("blk.0.ffn_down.weight.lora_b", np.ascontiguousarray(after.T))
    return mlx, write_file(writer, folder / "adapter.gguf")
