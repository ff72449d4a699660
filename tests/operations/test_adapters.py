"""Adapters of models that workers keep in memory."""

from __future__ import annotations

from pathlib import Path

from openruntime_jupyter.schemas.ai import Answer
from tests.adapters import write_adapters
from tests.gguf_twin import write_twin
from tests.runtimes import completed, runtime_in, submit
from tests.tiny_model import make_tiny_model


async def test_trained_again_adapter_is_loaded_again(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_twin(make_tiny_model(tmp_path / "tiny"), tmp_path / "models" / "twin.gguf")
    async with runtime_in(tmp_path) as runtime:

        async def answer(adapter: Path) -> Answer:
            parameters = {"model": "twin", "adapter": str(adapter), "prompt": "go", "max_tokens": 20}
            task = await completed(runtime, await submit(runtime, "generate", parameters), 60)
            assert task.result is not None
            return Answer.model_validate(task.result.output)

        _, adapter = write_adapters(tmp_path)
        first, again = await answer(adapter), await answer(adapter)
        write_adapters(tmp_path, seed=2)
        trained = await answer(adapter)
    assert first.text == again.text != trained.text
    assert again.load_time_s is None
    assert trained.load_time_s is not None
