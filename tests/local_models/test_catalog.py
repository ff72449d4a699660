from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from tests.gguf_twin import write_twin
from tests.tiny_model import HEADS, HIDDEN, KV_HEADS, LAYERS, make_tiny_model, quantise

ME = Caller("me")
GUEST = Caller(None, may_execute=False, trusted=False, may_spend=False)


def catalog(folder: Path, **settings: object) -> ModelCatalog:
    return ModelCatalog(Settings(data_dir=folder, **settings))  # type: ignore[arg-type]


def test_model_in_folder_has_name_and_sizes(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny", context=300)
    source = catalog(tmp_path).resolve("tiny", GUEST)
    assert (source.name, source.path, source.kind, source.context_length) == ("tiny", str(folder), "mlx", 300)
    assert source.bytes == (folder / "model.safetensors").stat().st_size
    assert source.cache_numbers == 2 * LAYERS * KV_HEADS * (HIDDEN // HEADS)


@pytest.mark.parametrize("bits", [4, 8])
def test_float32_size_of_quantised_weights_equals_original(tmp_path: Path, bits: int) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny")
    whole = catalog(tmp_path).resolve("tiny", ME).float32_bytes
    weights: Any = mx.load(str(folder / "model.safetensors"))
    assert whole == sum(weight.nbytes for weight in weights.values())
    quantise(folder, bits)
    assert catalog(tmp_path).resolve("tiny", ME).float32_bytes == whole


def test_name_never_leaves_folder_of_models(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "outside")
    make_tiny_model(tmp_path / "models" / "tiny")
    for name in ("../outside", "tiny/../../outside", "..", ".", "", "tiny/", "no such", "\0"):
        with pytest.raises((InvalidRequest, NotAllowed)):
            catalog(tmp_path, allow_hub=True).resolve(name, GUEST)


def test_path_requires_execute_permission_and_reveals_nothing(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "tiny")
    assert catalog(tmp_path).resolve(str(folder), ME).path == str(folder)
    messages = set()
    for path in (folder, tmp_path / "nothing"):
        with pytest.raises(NotAllowed) as refused:
            catalog(tmp_path).resolve(str(path), GUEST)
        messages.add(str(refused.value))
    assert len(messages) == 1


def test_allowed_path_is_available_by_path_and_name(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "tiny")
    models = catalog(tmp_path, allowed_models=(str(folder),))
    assert models.resolve(str(folder), GUEST) == models.resolve("tiny", GUEST) == models.known()[0]


def test_link_and_target_are_one_model(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "real")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(folder)
    models = catalog(tmp_path)
    assert models.resolve("link", GUEST) == models.resolve(str(folder), ME)


def test_downloaded_model_is_default(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "A")
    make_tiny_model(tmp_path / "models" / "SmolLM2-135M-Instruct")
    assert catalog(tmp_path).resolve(None, GUEST).name == "SmolLM2-135M-Instruct"


def test_quantisation_suffix_is_optional_if_unambiguous(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny-3.2")
    models = catalog(tmp_path)
    write_twin(folder, tmp_path / "models" / "Small-1.5.Q4_1.gguf", "Q4_1")
    assert models.resolve("Small-1.5", GUEST).name == "Small-1.5.Q4_1"
    for name in ("Small-1", "tiny-3"):
        with pytest.raises(InvalidRequest, match=r"available: Small-1\.5\.Q4_1, tiny-3\.2"):
            models.resolve(name, GUEST)
    write_twin(folder, tmp_path / "models" / "Small-1.5.f16.gguf", "F16")
    with pytest.raises(InvalidRequest, match=r"available: Small-1\.5\.Q4_1, Small-1\.5\.f16, tiny-3\.2"):
        models.resolve("Small-1.5", GUEST)


def test_missing_model_names_both_solutions(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"jupyter openruntime pull.*remote provider"):
        catalog(tmp_path).resolve(None, ME)


def test_hub_name_requires_allow_hub_and_permission(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown model 'someone/model'; available: none.*allow_hub"):
        catalog(tmp_path, allowed_models=("someone/model",)).resolve("someone/model", ME)
    with pytest.raises(NotAllowed, match="allowed_models"):
        catalog(tmp_path, allow_hub=True).resolve("someone/model", GUEST)
    assert catalog(tmp_path, allow_hub=True).resolve("someone/model", ME).kind == "hub"
    assert catalog(tmp_path, allow_hub=True, allowed_models=("someone/model",)).resolve("someone/model", GUEST).kind == "hub"


def test_incomplete_model_is_not_listed_and_path_error_names_cause(tmp_path: Path) -> None:
    half = make_tiny_model(tmp_path / "models" / "half")
    (half / "model.safetensors").unlink()
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{")
    models = catalog(tmp_path)
    assert models.known() == []
    for name, missing in (("half", "safetensors"), ("notes", "config.json"), ("broken", "can't be read"), ("nowhere", "can't be read")):
        with pytest.raises(InvalidRequest, match=missing):
            models.resolve(str(tmp_path / "models" / name), ME)


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny")
    for content in (b"", b"\xff" * 20, b"\x05\0\0\0\0\0\0\0{...}", b"\x02\0\0\0\0\0\0\0[]", b'\x07\0\0\0\0\0\0\0{"a":1}'):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InvalidRequest, match="can't be read"):
            catalog(tmp_path).resolve(str(folder), ME)


def test_new_model_is_found_immediately(tmp_path: Path) -> None:
    models = catalog(tmp_path)
    assert models.known() == []
    make_tiny_model(tmp_path / "models" / "tiny")
    assert [source.name for source in models.known()] == ["tiny"]


@pytest.mark.parametrize("kind", ["mlx", "gguf"])
def test_changed_file_of_a_model_is_noticed(tmp_path: Path, kind: str) -> None:
    folder = make_tiny_model(tmp_path / ("models" if kind == "mlx" else "source") / "tiny")
    other = make_tiny_model(tmp_path / "other", context=2048)
    models = catalog(tmp_path)
    if kind == "mlx":
        assert [source.context_length for source in models.known()] == [512]
        config = folder / "config.json"
        before = config.stat()
        config.write_bytes((other / "config.json").read_bytes().ljust(before.st_size))
        os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
        assert [source.context_length for source in models.known()] == [2048]
        tokenizer = folder / "tokenizer_config.json"
        tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "chat_template": "{{ tools }}"}))
        assert [source.abilities for source in models.known()] == [("chat", "tools")]
        return
    (tmp_path / "models").mkdir()
    parts = [tmp_path / "models" / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        write_twin(folder, part)
    (first,) = models.known()
    write_twin(other, parts[1], "F16")
    (second,) = models.known()
    assert second.bytes != first.bytes
    assert second.modified != first.modified
