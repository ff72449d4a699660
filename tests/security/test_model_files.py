"""Hostile files in the folder of models: the server stays responsive, and all other models stay available."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from openruntime_jupyter.ai.agents import Agents
from openruntime_jupyter.errors import InvalidRequest
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from tests.support import STANDALONE, TOKEN, Server, running_server, slowness
from tests.tiny_model import make_tiny_model

Make = Callable[[Path], Path]
DEEP = 100_000


def gguf(path: Path, tensors: int, keys: int, *entries: bytes, size: int = 0) -> Path:
    """Write the begin of a GGUF file; the file is sparse up to `size`."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(entries))
    if size:
        os.truncate(path, size)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def many_texts(folder: Path) -> Path:
    """Write a list of 10^8 empty texts, in a sparse file."""
    entry = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 10**8)
    return gguf(folder / "texts.gguf", 0, 1, entry, size=10**9)


def many_lists(folder: Path) -> Path:
    """Write many lists of empty texts, each of them with few."""
    entry = text("k") + struct.pack("<IIQ", 9, 8, 900_000) + bytes(8 * 900_000)
    path = gguf(folder / "lists.gguf", 0, 40, *[entry] * 3)
    os.truncate(path, 10**9)
    return path


def long_text(folder: Path) -> Path:
    """Write a text of 4 GB, in a sparse file."""
    return gguf(folder / "long.gguf", 0, 1, text("general.name") + struct.pack("<IQ", 8, 4 * 10**9), size=5 * 10**9)


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.gguf")
    return folder / "pipe.gguf"


def pipe_as_config(folder: Path) -> Path:
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped" / "config.json")
    return folder / "piped"


def pipe_as_weights(folder: Path) -> Path:
    path = make_tiny_model(folder / "piped")
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    return path


def deep_config(folder: Path) -> Path:
    path = make_tiny_model(folder / "deep")
    (path / "config.json").write_text("[" * DEEP + "]" * DEEP)
    return path


def deep_weights(folder: Path) -> Path:
    path = make_tiny_model(folder / "deep")
    return with_header(path, b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}")


def huge_config(folder: Path) -> Path:
    path = make_tiny_model(folder / "huge")
    (path / "config.json").write_bytes(b"[" + b"0," * 20_000_000 + b"0]")
    return path


def huge_shape(folder: Path) -> Path:
    """Write a tensor whose number of elements has three million digits."""
    path = make_tiny_model(folder / "huge")
    sides = ",".join(["1" + "0" * 4000] * 750)
    return with_header(path, f'{{"a": {{"dtype": "F32", "shape": [{sides}]}}}}'.encode())


def huge_sizes(folder: Path) -> Path:
    return make_tiny_model(folder / "huge", head_dim=10**4000, sliding_window=1)


def endless_config(folder: Path) -> Path:
    (folder / "endless").mkdir()
    (folder / "endless" / "config.json").symlink_to("/dev/zero")
    return folder / "endless"


def with_header(model: Path, header: bytes) -> Path:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return model


HOSTILE = (
    *(many_texts, many_lists, long_text, pipe, pipe_as_config, pipe_as_weights),
    *(deep_config, deep_weights, huge_config, huge_shape, endless_config),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "models" / "tiny")
    config = {"OpenRuntimeApp": {"models_dir": str(folder / "models"), "cpu_slots": 1}}
    with running_server(folder, STANDALONE, token=TOKEN, config=config) as running:
        yield running


@pytest.fixture
def models(server: Server) -> Iterator[Path]:
    """Return the folder of models, which has only the tiny model again afterwards."""
    (tiny,) = server.get("/models")["models"]
    folder = Path(tiny["path"]).parent
    yield folder
    for path in folder.iterdir():
        if path.name != "tiny":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Pulse:
    """Longest time that the server took for a small request, measured until the end of the block.

    Responses are not checked against the OpenAPI document, because that takes longer than the request.
    """

    def __init__(self, server: Server) -> None:
        self.client = httpx.Client(trust_env=False, headers=server.headers, base_url=server.url, timeout=20.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self.longest = 0.0

    def _measure(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            self.client.get("/health")
            self.longest = max(self.longest, time.monotonic() - begun)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure during the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self.client.close()


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_model_blocks_no_request_and_hides_no_model(server: Server, models: Path, make: Make) -> None:
    path, pulse = make(models), Pulse(server)
    with pulse.measured():
        listed = pulse.client.get("/models")
        refused = pulse.client.post("/tasks", json={"operation": "generate", "parameters": {"model": str(path)}})
    assert [model["name"] for model in listed.json()["models"]] == ["tiny"]
    assert refused.status_code == 422, refused.text
    assert path.name in refused.json()["error"]
    assert pulse.longest < 1.0 * slowness(), f"a small request took {pulse.longest:.2f} s"


def test_prompt_to_other_model_is_queued_beside_hostile_ones(server: Server, models: Path) -> None:
    for make in (many_texts, pipe, deep_config):
        make(models)
    task = server.submit("generate", {"model": "tiny", "prompt": "the queue"}, wait=False)
    assert task["status"] in ("pending", "running")
    assert server.request("DELETE", f"/tasks/{task['task_id']}").status_code == 200


def test_model_whose_name_is_not_unicode_hides_no_model(server: Server, models: Path) -> None:
    make_tiny_model(models / "other").rename(models / os.fsdecode(b"bad-\xff"))
    assert [model["name"] for model in server.get("/models")["models"]] == ["tiny"]


async def test_models_are_not_listed_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / "models" / "tiny")
    models = ModelCatalog(Settings(data_dir=tmp_path))
    listed_in = []
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed_in.append(threading.current_thread()) or listing(path))
    await models.refresh(None, Caller("me"))
    assert models.resolve("tiny", Caller("me")) == models.resolve(None, Caller("me")) == models.known()[0]
    assert threading.current_thread() not in listed_in
    assert listed_in


def test_sizes_that_no_model_has_are_unknown(tmp_path: Path) -> None:
    path = huge_sizes(tmp_path)
    source = ModelCatalog(Settings(data_dir=tmp_path)).resolve(str(path), Caller("me"))
    assert source.cache_numbers is not None
    assert source.cache_numbers < 10**6


@pytest.mark.parametrize("size", [24, 200, 5000])
def test_header_cut_anywhere_is_reported_as_truncated(tmp_path: Path, size: int) -> None:
    entries = [text(f"key.{number}") + struct.pack("<I", 8) + text("value" * 10) for number in range(100)]
    path = gguf(tmp_path / "cut.gguf", 0, 100, *entries)
    os.truncate(path, size)
    with pytest.raises(InvalidRequest, match="truncated or damaged"):
        ModelCatalog(Settings(data_dir=tmp_path)).resolve(str(path), Caller("me"))


def test_agent_file_whose_name_is_not_unicode_is_reported_as_json(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad-\xff.md")).write_text("no front matter")
    assert "bad-" in Agents(tmp_path).all().model_dump_json()


def test_pipe_as_agent_file_is_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "agent.md")
    answers: list[Any] = []
    reader = threading.Thread(target=lambda: answers.append(Agents(tmp_path).all()), daemon=True)
    reader.start()
    reader.join(20)
    assert answers, "reading the agents did not end"
    assert any("not a regular file" in problem for problem in answers[0].problems)
