"""Models and adapters that are written again while a worker keeps them in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import Answer
from tests.adapters import write_adapters
from tests.gguf_twin import write_twin
from tests.runtimes import completed, runtime_in, submit
from tests.tiny_model import make_tiny_model


async def ask(runtime: Runtime, model: str, **parameters: str) -> Answer:
    given = {"model": model, "prompt": "go", "max_tokens": 20, **parameters}
    task = await completed(runtime, await submit(runtime, "generate", given), 60)
    assert task.result is not None
    return Answer.model_validate(task.result.output)


async def test_new_weights_of_model_and_adapter_are_loaded(tmp_path: Path) -> None:
    twin = tmp_path / "models" / "twin.gguf"
    tiny, other = make_tiny_model(tmp_path / "models" / "tiny"), make_tiny_model(tmp_path / "other", seed=1)
    write_twin(tiny, twin)
    _, adapter = write_adapters(tmp_path)
    async with runtime_in(tmp_path) as runtime:
        adapted = await ask(runtime, "twin", adapter=str(adapter))
        write_adapters(tmp_path, seed=2)
        trained = await ask(runtime, "twin", adapter=str(adapter))
        plain = await ask(runtime, "twin")
        write_twin(other, twin)
        replaced, again = await ask(runtime, "twin"), await ask(runtime, "twin")
    assert adapted.text != trained.text != plain.text != replaced.text == again.text
    assert (trained.load_time_s is not None, replaced.load_time_s is not None, again.load_time_s) == (True, True, None)


def test_new_weights_of_folder_are_another_source(tmp_path: Path) -> None:
    tiny, other = make_tiny_model(tmp_path / "models" / "tiny"), make_tiny_model(tmp_path / "other", seed=1)
    catalog = ModelCatalog(Settings(data_dir=tmp_path))
    before = catalog.resolve("tiny", Caller("me"))
    assert catalog.resolve("tiny", Caller("me")) == before
    shutil.copyfile(other / "model.safetensors", tiny / "model.safetensors")
    assert catalog.resolve("tiny", Caller("me")) != before
