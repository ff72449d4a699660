from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest, NotAllowed, Unavailable
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from tests.gguf_twin import write_twin
from tests.tiny_model import HEADS, HIDDEN, KV_HEADS, LAYERS, make_tiny_model

ME = Caller("me")
GUEST = Caller(None, may_execute=False, trusted=False, may_spend=False)


def catalog(folder: Path, **settings: object) -> ModelCatalog:
    return ModelCatalog(Settings(data_dir=folder, **settings))  # type: ignore[arg-type]


def test_a_model_of_the_folder_goes_by_its_name_and_tells_its_sizes(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny", context=300)
    source = catalog(tmp_path).resolve("tiny", GUEST)
    assert (source.name, source.path, source.kind, source.context_length) == ("tiny", str(folder), "mlx", 300)
    assert source.bytes == (folder / "model.safetensors").stat().st_size
    assert source.cache_numbers == 2 * LAYERS * KV_HEADS * (HIDDEN // HEADS)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_float32_size_of_quantised_weights_is_that_of_what_they_stand_for(tmp_path: Path, bits: int) -> None:
    import mlx.core as mx

    folder = make_tiny_model(tmp_path / "models" / "tiny")
    whole = catalog(tmp_path).resolve("tiny", ME).float32_bytes
    weights: Any = mx.load(str(folder / "model.safetensors"))
    assert whole == sum(weight.nbytes for weight in weights.values())
    packed: dict[str, Any] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            base = name.removesuffix(".weight")
            packed |= dict(zip((name, f"{base}.scales", f"{base}.biases"), mx.quantize(weight, 32, bits), strict=True))
        else:
            packed[name] = weight
    second = tmp_path / "models" / "packed"
    second.mkdir()
    mx.save_safetensors(str(second / "model.safetensors"), packed)
    config = json.loads((folder / "config.json").read_bytes())
    (second / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": bits}}))
    assert catalog(tmp_path).resolve("packed", ME).float32_bytes == whole


def test_a_name_never_leaves_the_folder_of_models(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "outside")
    make_tiny_model(tmp_path / "models" / "tiny")
    for name in ("../outside", "tiny/../../outside", "..", ".", "", "tiny/", "no such", "\0"):
        with pytest.raises((InvalidRequest, NotAllowed)):
            catalog(tmp_path, allow_hub=True).resolve(name, GUEST)


def test_a_path_is_for_who_may_execute_and_a_guest_learns_nothing_of_what_is_there(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "tiny")
    assert catalog(tmp_path).resolve(str(folder), ME).path == str(folder)
    said = set()
    for path in (folder, tmp_path / "nothing"):
        with pytest.raises(NotAllowed) as refused:
            catalog(tmp_path).resolve(str(path), GUEST)
        said.add(str(refused.value))
    assert len(said) == 1


def test_a_path_that_is_allowed_is_there_for_all_by_path_and_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "tiny")
    there = catalog(tmp_path, allowed_models=(str(folder),))
    assert there.resolve(str(folder), GUEST) == there.resolve("tiny", GUEST) == there.known()[0]


def test_a_link_is_one_model_with_what_it_leads_to(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "elsewhere" / "real")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(folder)
    there = catalog(tmp_path)
    assert there.resolve("link", GUEST) == there.resolve(str(folder), ME)


def test_the_fetched_model_answers_where_none_is_named(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "A")
    make_tiny_model(tmp_path / "models" / "SmolLM2-135M-Instruct")
    assert catalog(tmp_path).resolve(None, GUEST).name == "SmolLM2-135M-Instruct"


def test_a_file_goes_by_its_name_without_its_kind_of_numbers_too_where_that_names_one_alone(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny-3.2")
    there = catalog(tmp_path)
    write_twin(folder, tmp_path / "models" / "Small-1.5.Q4_1.gguf", "Q4_1")
    assert there.resolve("Small-1.5", GUEST).name == "Small-1.5.Q4_1"
    for name in ("Small-1", "tiny-3"):
        with pytest.raises(InvalidRequest, match=r"available: Small-1\.5\.Q4_1, tiny-3\.2"):
            there.resolve(name, GUEST)
    write_twin(folder, tmp_path / "models" / "Small-1.5.f16.gguf", "F16")
    with pytest.raises(InvalidRequest, match=r"available: Small-1\.5\.Q4_1, Small-1\.5\.f16, tiny-3\.2"):
        there.resolve("Small-1.5", GUEST)


def test_without_any_model_the_answer_names_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"jupyter openruntime pull.*remote provider"):
        catalog(tmp_path).resolve(None, ME)


def test_a_name_on_the_hub_needs_the_hub_and_the_list_or_the_right_to_execute(tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match="allow_hub"):
        catalog(tmp_path, allowed_models=("someone/model",)).resolve("someone/model", ME)
    with pytest.raises(NotAllowed, match="allowed_models"):
        catalog(tmp_path, allow_hub=True).resolve("someone/model", GUEST)
    assert catalog(tmp_path, allow_hub=True).resolve("someone/model", ME).kind == "hub"
    assert catalog(tmp_path, allow_hub=True, allowed_models=("someone/model",)).resolve("someone/model", GUEST).kind == "hub"


def test_what_is_no_model_is_not_listed_and_says_what_is_missing_by_its_path(tmp_path: Path) -> None:
    half = make_tiny_model(tmp_path / "models" / "half")
    (half / "model.safetensors").unlink()
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{")
    there = catalog(tmp_path)
    assert there.known() == []
    for name, missing in (("half", "safetensors"), ("notes", "config.json"), ("broken", "can't be read"), ("nowhere", "can't be read")):
        with pytest.raises(InvalidRequest, match=missing):
            there.resolve(str(tmp_path / "models" / name), ME)


def test_damaged_weights_are_told_as_such(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "models" / "tiny")
    for content in (b"", b"\xff" * 20, b"\x05\0\0\0\0\0\0\0{...}"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InvalidRequest, match="can't be read"):
            catalog(tmp_path).resolve(str(folder), ME)


def test_a_new_model_is_seen_at_once(tmp_path: Path) -> None:
    there = catalog(tmp_path)
    assert there.known() == []
    make_tiny_model(tmp_path / "models" / "tiny")
    assert [source.name for source in there.known()] == ["tiny"]
