"""Properties of models in addition to their sizes: the type of the weights, and abilities according to the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.values import ModelSource
from tests.gguf_twin import write_twin
from tests.tiny_model import make_tiny_model, quantise

TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
REASONING = "{% for m in messages %}{{ m.content }}{% endfor %}<think>"


def shape(folder: Path) -> ModelSource:
    (source,) = ModelCatalog(Settings(data_dir=folder)).known()
    return source


@pytest.mark.parametrize(
    ("name", "file_type", "told"),
    [("a.gguf", 15, "Q4_K_M"), ("a.q8_0.gguf", None, "Q8_0"), ("a-Q5_K_M.gguf", 999, "Q5_K_M"), ("a.gguf", None, None)],
)
def test_type_of_gguf_file_is_in_its_header_or_name(
    folder: Path, tmp_path: Path, name: str, file_type: int | None, told: str | None
) -> None:
    (tmp_path / "models").mkdir()
    write_twin(folder, tmp_path / "models" / name, values={"general.file_type": file_type})
    assert shape(tmp_path).quantisation == told


@pytest.mark.parametrize(
    ("template", "told"),
    [(None, ()), ("{{ messages }}", ("chat",)), (TOOLS, ("chat", "tools")), (REASONING, ("chat", "reasoning"))],
    ids=["none", "plain", "tools", "reasoning"],
)
def test_abilities_follow_from_the_chat_template(folder: Path, tmp_path: Path, template: str | None, told: tuple[str, ...]) -> None:
    (tmp_path / "models").mkdir()
    write_twin(folder, tmp_path / "models" / "a.gguf", values={"tokenizer.chat_template": template})
    assert shape(tmp_path).abilities == told


def test_folder_has_bits_or_number_type_and_a_template_file(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "models" / "tiny", torch_dtype="bfloat16")
    assert (shape(tmp_path).quantisation, shape(tmp_path).abilities) == ("bfloat16", ("chat",))
    (model / "chat_template.jinja").write_text(TOOLS)
    quantise(model, 4)
    assert (shape(tmp_path).quantisation, shape(tmp_path).abilities) == ("4 bits", ("chat", "tools"))
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    for damaged in ("[", "7", json.dumps({**settings, "chat_template": 7})):
        (model / "tokenizer_config.json").write_text(damaged)
        (model / "config.json").touch()
        assert shape(tmp_path).abilities == ()
