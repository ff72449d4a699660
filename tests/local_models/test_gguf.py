from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter.local_models.gguf_model import load_gguf
from tests.gguf_twin import write_twin
from tests.llama_cpp import greedy, llama_cpp, tokens_of

KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")
PROMPTS = ("the queue is", "0123456789", " answers; a task")
COUNT = 24


def likeliest(model: Any, prompt: list[int], count: int, ends: set[int]) -> list[int]:
    """Return the greedy tokens of mlx-lm up to the end token."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    written: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
        written.append(int(token))
        if token in ends:
            break
    return written


def must_agree(path: Path, same_numbers: Path) -> None:
    """Check that `path` gives the same tokens and greedy text as llama.cpp for `same_numbers`."""
    model, tokenizer = load_gguf(path, "float32")
    with llama_cpp(same_numbers) as other:
        for text in PROMPTS:
            prompt = tokens_of(other, text)
            assert tokenizer.encode(text) == prompt
            written = likeliest(model, prompt, COUNT, tokenizer.eos_token_ids)
            assert written == greedy(other, prompt, COUNT), text
            assert len(written) > COUNT // 2, "too short to tell anything"


@pytest.mark.parametrize("kind", KINDS)
def test_text_equals_llama_cpp(folder: Path, tmp_path: Path, kind: str) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf", kind)
    # llama.cpp rounds activations to 8 bits for quantised weights, and so may choose another of two nearly equally likely tokens.
    # It therefore gets the weights dequantised by the gguf package, a third party.
    must_agree(path, write_twin(folder, tmp_path / "same.gguf", kind, exact=True) if kind.startswith("Q") else path)


def test_quantised_file_with_clear_choices_agrees_with_llama_cpp(folder: Path, tmp_path: Path) -> None:
    path = write_twin(make_decided(folder, tmp_path / "decided"), tmp_path / "tiny.gguf", "Q4_1")
    must_agree(path, path)


def make_decided(folder: Path, decided: Path) -> Path:
    """Write a model that prefers, after each token, the one with an id seven higher, with untied embeddings."""
    import mlx.core as mx

    shutil.copytree(folder, decided)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    embedding = weights["model.embed_tokens.weight"] * 40
    mx.save_safetensors(
        str(decided / "model.safetensors"),
        {**weights, "model.embed_tokens.weight": embedding, "lm_head.weight": mx.roll(embedding, 7, 0)},
        metadata={"format": "mlx"},
    )
    config = json.loads((folder / "config.json").read_text())
    (decided / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return decided


def logits(model: Any, prompt: list[int]) -> Any:
    import mlx.core as mx

    return model(mx.array([prompt]))[0, -1].astype(mx.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_weights_give_nearly_the_same_logits(folder: Path, tmp_path: Path, kind: str) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf", kind)
    wide, stored = (np.array(logits(load_gguf(path, form)[0], [5, 6, 7])) for form in ("float32", "stored"))
    assert np.abs(wide - stored).max() < 0.02 * np.abs(wide).max()


@pytest.mark.parametrize(
    "values",
    [
        {"llama.rope.freq_base": 500_000.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.dimension_count": None},
        {"llama.attention.key_length": 8, "llama.attention.value_length": 8},
    ],
    ids=lambda values: next(iter(values)),
)
def test_rope_equals_llama_cpp(folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf", values=values)
    must_agree(path, path)


def test_rope_factors_of_file_are_applied(folder: Path, tmp_path: Path) -> None:
    path = write_twin(folder, tmp_path / "tiny.gguf", tensors={"rope_freqs.weight": np.array([1, 2, 4, 8], np.float32)})
    must_agree(path, path)


def test_missing_biases_are_zero(folder: Path, tmp_path: Path) -> None:
    biases = {
        f"blk.{layer}.attn_{part}.bias": np.linspace(-1, 1, size, dtype=np.float32)
        for layer in (0, 1)
        for part, size in (("q", 32), ("k", 16), ("v", 16))
    }
    path = write_twin(folder, tmp_path / "tiny.gguf", tensors=biases)
    must_agree(path, path)


def test_mlx_folder_and_gguf_twin_give_same_text(folder: Path, tmp_path: Path) -> None:
    import mlx_lm

    messages = [{"role": "user", "content": "what runs on the device?"}]
    texts = []
    for model, tokenizer in (mlx_lm.load(str(folder))[:2], load_gguf(write_twin(folder, tmp_path / "tiny.gguf"), "float32")):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        texts.append([piece.text for piece in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=30)])
    assert texts[0] == texts[1]
