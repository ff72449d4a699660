"""Models in the folders of other programs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from tests.gguf_twin import write_twin

GUEST = Caller(None, may_execute=False, trusted=False, may_spend=False)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GGUF file."""
    return write_twin(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def catalog(tmp_path: Path, *folders: Path) -> ModelCatalog:
    return ModelCatalog(Settings(data_dir=tmp_path / "data", models_dirs=folders))


def names(models: ModelCatalog) -> dict[str, str]:
    return {source.name: source.kind for source in models.known()}


def test_models_of_lm_studio_are_found(tmp_path: Path, folder: Path, file: Path) -> None:
    (tmp_path / "publisher" / "Tiny-GGUF").mkdir(parents=True)
    shutil.copy(file, tmp_path / "publisher" / "Tiny-GGUF" / "Tiny-Q8_0.gguf")
    shutil.copytree(folder, tmp_path / "publisher" / "Tiny-mlx")
    (tmp_path / "publisher" / "notes.txt").touch()
    assert names(catalog(tmp_path, tmp_path)) == {"Tiny-Q8_0": "gguf", "Tiny-mlx": "mlx"}


def test_current_snapshots_of_hugging_face_cache_are_found(tmp_path: Path, folder: Path, file: Path) -> None:
    hub = tmp_path / "hub"
    for name, content in (("models--some--Tiny", folder), ("models--some--Tiny-GGUF", file)):
        for revision in ("aaa", "bbb"):
            snapshot = hub / name / "snapshots" / revision
            snapshot.mkdir(parents=True)
            for number, each in enumerate(folder.iterdir() if content is folder else [file]):
                blob = hub / name / "blobs" / f"{number}{revision}"
                blob.parent.mkdir(exist_ok=True)
                shutil.copy(each, blob)
                (snapshot / each.name).symlink_to(os.path.relpath(blob, snapshot))
        (hub / name / "refs").mkdir()
        (hub / name / "refs" / "main").write_text("aaa")
    models = catalog(tmp_path, hub)
    assert names(models) == {"Tiny": "mlx", "tiny": "gguf"}
    assert all("/snapshots/aaa" in source.path for source in models.known())
    assert models.resolve("tiny", GUEST).bytes == file.stat().st_size


def test_models_of_ollama_have_its_names(tmp_path: Path, file: Path) -> None:
    manifests = tmp_path / "manifests" / "registry.ollama.ai" / "library"
    (tmp_path / "blobs").mkdir()
    shutil.copy(file, tmp_path / "blobs" / f"sha256-{'a' * 64}")
    (tmp_path / "secret").write_bytes(file.read_bytes())
    layers = {
        "tiny/1b": [
            {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'b' * 64}"},
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"},
        ],
        "missing/latest": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'c' * 64}"}],
        "outside/latest": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../secret"}],
        "odd/latest": [1],
    }
    for name, entries in layers.items():
        (manifests / name).parent.mkdir(parents=True)
        (manifests / name).write_text(json.dumps({"layers": entries}))
    (manifests / "odd" / "text").write_text("{")
    models = catalog(tmp_path, tmp_path)
    assert names(models) == {"tiny:1b": "gguf"}
    assert models.resolve("tiny:1b", GUEST).cache_numbers is not None


def test_missing_and_unreadable_folders_hide_no_model(tmp_path: Path, file: Path) -> None:
    (tmp_path / "good").mkdir()
    shutil.copy(file, tmp_path / "good" / "tiny.gguf")
    (tmp_path / "good" / "loop").symlink_to(tmp_path / "good")
    (tmp_path / "good" / "models--broken").mkdir()
    assert names(catalog(tmp_path, tmp_path / "missing", file, tmp_path / "good")) == {"tiny": "gguf"}


def test_model_in_parts_has_the_size_of_all(tmp_path: Path, file: Path) -> None:
    first, second = (tmp_path / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2))
    shutil.copy(file, first)
    models = catalog(tmp_path, tmp_path)
    with pytest.raises(InvalidRequest, match=r"tiny-00002-of-00002\.gguf is missing"):
        models.resolve(str(first), Caller("me"))
    shutil.copy(file, second)
    assert {source.name: source.bytes for source in models.known()} == {first.stem: 2 * file.stat().st_size}
    with pytest.raises(InvalidRequest, match="part 2 of 2: give the first part"):
        models.resolve(str(second), Caller("me"))


def test_file_without_a_model_that_writes_is_rejected(tmp_path: Path, folder: Path) -> None:
    embeddings = write_twin(folder, tmp_path / "embeddings.gguf", values={"llama.attention.causal": False})
    adapter = write_twin(folder, tmp_path / "adapter.gguf", values={"general.type": "adapter"})
    for path, cause in ((embeddings, "a model for embeddings"), (adapter, "no language model")):
        with pytest.raises(InvalidRequest, match=cause):
            catalog(tmp_path, tmp_path).resolve(str(path), Caller("me"))
