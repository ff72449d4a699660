"""Language model with 30,000 random weights for tests of loading and generating."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 32, 2, 4, 2, 64
SPECIAL = ("<|begin|>", "<|end|>", "<|unknown|>")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
THINKING = """\
{% for m in messages %}{{ m.role }}: {% set content = m.content or '' %}
{%- if '</think>' in content %}{% set content = content.split('</think>') | last %}{% endif %}{{ content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:\\n<think>\\n' }}{% endif %}"""
"""Template that opens the reasoning, and leaves it out of earlier turns."""
STRICT_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}{% endfor %}" + TEMPLATE
)
"""Template without a system role that requires turns, like those of Gemma and of early Mistral models."""

TEXT = (
    "the queue is shared by every notebook, and what runs on the device can be seen, moved and stopped by anybody who may",
    "a task waits for its turn; the worker computes and answers; 0123456789 is counted digit by digit",
)


def make_tiny_model(
    folder: Path, *, seed: int = 0, context: int = 512, template: bool = True, dtype: str = "float32", **config: Any
) -> Path:
    """Write the model into `folder` in the layout of mlx-lm and transformers, with a vocabulary of 300 and `context` tokens of context."""
    folder.mkdir(parents=True)
    vocabulary = _tokenizer(folder, template)
    described = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INNER,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(described))
    _weights(folder / "model.safetensors", vocabulary, described["num_hidden_layers"], seed, dtype)
    return folder


def make_thinking_model(folder: Path) -> Path:
    """Write a tiny model that reasons without end, because its chat template opens the reasoning."""
    make_tiny_model(folder, context=4096)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "chat_template": THINKING}))
    return folder


def quantise(folder: Path, bits: int, dtype: str = "float32") -> None:
    """Quantise the matrices of a model in place."""
    import mlx.core as mx

    weights: Any = mx.load(str(folder / "model.safetensors"))
    changed: dict[str, Any] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            base = name.removesuffix(".weight")
            parts = mx.quantize(weight.astype(getattr(mx, dtype)), 32, bits)
            changed |= dict(zip((name, f"{base}.scales", f"{base}.biases"), parts, strict=True))
        else:
            changed[name] = weight
    mx.save_safetensors(str(folder / "model.safetensors"), changed)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": bits}}))


def _tokenizer(folder: Path, template: bool) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict(zip(("bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named, "clean_up_tokenization_spaces": False}
    if template:
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def _weights(path: Path, vocabulary: int, layers: int, seed: int, dtype: str) -> None:
    import mlx.core as mx

    keys = iter(mx.random.split(mx.random.key(seed), 1 + 7 * layers))
    kind = getattr(mx, dtype)

    def drawn(*shape: int) -> Any:
        return (mx.random.normal(shape, key=next(keys)) * 0.2).astype(kind)

    head = HIDDEN // HEADS
    weights = {"model.embed_tokens.weight": drawn(vocabulary, HIDDEN), "model.norm.weight": mx.ones(HIDDEN, kind)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": drawn(HIDDEN, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": drawn(KV_HEADS * head, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": drawn(KV_HEADS * head, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": drawn(HIDDEN, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": drawn(INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": drawn(INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": drawn(HIDDEN, INNER),
            f"{prefix}.input_layernorm.weight": mx.ones(HIDDEN, kind),
            f"{prefix}.post_attention_layernorm.weight": mx.ones(HIDDEN, kind),
        }
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
