"""Tiny model that writes a given text after every prompt, for what a model with random weights would never write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny_model import make_tiny_model

SIZES = (3, 4, 5, 6, 7, 2)
"""Numbers of bytes of its tokens, the preferred ones first."""
TOOL_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nTo call one: <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
{%- if message.role == 'tool' %}{{ '<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- else %}{{ message.content or '' }}{% for tool_call in message.tool_calls or [] %}{% set tool_call = tool_call.function %}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + (tool_call.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Chat template with tools whose calls are JSON between tags, as of many models."""


def make_scripted_model(folder: Path, script: str, template: str, context: int = 2048) -> Path:
    """Write a model in the layout of mlx-lm that writes `script` and ends. `template` ends its prompts with a line feed.

    Each token of the script has its own dimension in all layers but the last one, which maps it to the next token.
    """
    import mlx.core as mx

    letters = _letters()
    make_tiny_model(folder, context=context)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    chain = [vocabulary["Ċ"]]
    pieces = _unique_pieces("".join(letters[byte] for byte in script.encode()), frozenset(vocabulary))
    assert pieces is not None, "the script repeats itself too often"
    for piece in pieces:
        vocabulary[piece] = len(vocabulary)
        chain.append(vocabulary[piece])
    path.write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    config = json.loads((folder / "config.json").read_text())
    end = int(config["eos_token_id"])
    size = -(-len(vocabulary) // 32) * 32
    config |= {"vocab_size": len(vocabulary), "hidden_size": size, "num_attention_heads": 1, "num_key_value_heads": 1}
    config |= {"num_hidden_layers": 1, "intermediate_size": 32, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    step = mx.zeros((len(vocabulary), size))
    for token, following in zip(chain, [*chain[1:], end], strict=True):
        step[following, token] = 1.0
    layer = "model.layers.0"
    weights: dict[str, Any] = {
        "model.embed_tokens.weight": mx.eye(len(vocabulary), size),
        "lm_head.weight": step,
        "model.norm.weight": mx.ones(size),
    }
    weights |= {f"{layer}.self_attn.{name}_proj.weight": mx.zeros((size, size)) for name in "qkvo"}
    weights |= {f"{layer}.mlp.{name}_proj.weight": mx.zeros((32, size)) for name in ("gate", "up")}
    weights |= {f"{layer}.mlp.down_proj.weight": mx.zeros((size, 32))}
    weights |= {f"{layer}.{name}_layernorm.weight": mx.ones(size) for name in ("input", "post_attention")}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _unique_pieces(text: str, used: frozenset[str]) -> list[str] | None:
    """Return pieces of `text` that are not in `used` and differ from each other, or None if that is impossible."""
    if not text:
        return []
    for size in SIZES:
        if (piece := text[:size]) not in used and len(piece) == size:
            rest = _unique_pieces(text[size:], used | {piece})
            if rest is not None:
                return [piece, *rest]
    return None


def _letters() -> dict[int, str]:
    """Return the letter of each byte in byte-level tokenizers."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + number) for number, byte in enumerate(others)}}
