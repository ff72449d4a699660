"""The default model for mlx-lm: its weights out of the GGUF file, and a folder of them: `python -m benchmarks.mlx_twin FILE FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
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
"""Names of the parts of a model and of each layer in mlx-lm, by their names in GGUF files."""
CONTROL = 3
"""Type of a special token."""


class GgufModel:
    """Llama model in a GGUF file, whose weights mlx can read."""

    def __init__(self, path: str) -> None:
        stored: Any = mx.load(path, format="gguf", return_metadata=True)
        self._stored, self.values = stored

    def config(self) -> dict[str, Any]:
        """Return the configuration for mlx-lm."""

        def number(name: str) -> Any:
            return self.values[f"llama.{name}"].item()

        return {
            "model_type": "llama",
            "hidden_size": number("embedding_length"),
            "num_hidden_layers": number("block_count"),
            "intermediate_size": number("feed_forward_length"),
            "num_attention_heads": number("attention.head_count"),
            "num_key_value_heads": number("attention.head_count_kv"),
            "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
            "vocab_size": len(self.values["tokenizer.ggml.tokens"]),
            "max_position_embeddings": number("context_length"),
            "rope_theta": number("rope.freq_base"),
            "rope_traditional": True,
            "tie_word_embeddings": "output.weight" not in self._stored,
        }

    def take_weights(self, dtype: Any) -> dict[str, Any]:
        """Return the weights by mlx-lm's names, converted one after the other, and delete those of the file."""
        weights = {}
        for name in [name for name in self._stored if name.endswith(".weight")]:
            *layer, part, kind = name.split(".")
            weight, base = self._stored.pop(name), name.removesuffix("weight")
            if base + "scales" in self._stored:
                scales, biases = (self._stored.pop(base + each).astype(mx.float32) for each in ("scales", "biases"))
                weight = mx.dequantize(weight, scales, biases, 32, weight.shape[-1] // scales.shape[-1])
            weight = weight.astype(dtype)
            mx.eval(weight)
            weights[f"model.layers.{layer[1]}.{NAMES[part]}.{kind}" if layer else f"{NAMES[part]}.{kind}"] = weight
        return weights

    def write(self, folder: Path) -> None:
        """Write a folder in float16, with the tokenizer."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        config, values = self.config(), self.values
        tokens: list[str] = values["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds = values["tokenizer.ggml.token_type"].tolist()
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        )
        begin, end = (values[f"tokenizer.ggml.{name}_token_id"].item() for name in ("bos", "eos"))
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[begin],
            "eos_token": tokens[end],
            "chat_template": values["tokenizer.chat_template"],
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": begin, "eos_token_id": end}))
        mx.save_safetensors(str(folder / "model.safetensors"), self.take_weights(mx.float16), metadata={"format": "mlx"})


if __name__ == "__main__":
    GgufModel(sys.argv[1]).write(Path(sys.argv[2]))
