"""Language models of other hosts: found by name, format and size, and used where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.errors import InvalidRequest, MemoryRefused
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.notebook.display.tables import ModelTable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.values import ModelSource
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import ME, completed, ended, runtime_in, submit, until, waits_for
from tests.tiny_model import make_tiny_model

PROMPT = {"model": "tiny", "prompt": "a task", "max_tokens": 4, "keep_alive": 60}


async def test_task_runs_where_its_model_is(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    make_tiny_model(tmp_path / "far" / "models" / "tiny", torch_dtype="float32")
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way))) as runtime:
        await until(lambda: runtime.engine.stored_models().get("far"), 30, "the host's models")
        task = await completed(runtime, await submit(runtime, "generate", PROMPT))
        assert task.device_used == "far.device_0"
        (host,) = runtime.hosts()
        assert host.models == ["tiny"]
        service = AiService(runtime, AiConfig(), RemoteProvider(profiles_from({}, {}), {}))
        listed = await service.models(ME)
        assert [(each.name, each.hosts, each.path) for each in listed.models] == [("tiny", ["far"], None)]
        (tiny,) = listed.models
        assert (tiny.kind, tiny.engine, tiny.quantisation, tiny.context_length) == ("mlx", "mlx-lm", "float32", 512)
        assert tiny.bytes is not None
        assert tiny.memory_bytes is not None
        assert tiny.abilities == ["chat", "schema", "logprobs"]
        (shown,) = ModelTable(listed).content()
        for text in ("hosts", "far", "float32", "512 tokens", "chat"):
            assert text in shown
        assert (await service.model_names(ME))["tiny"] == "local"
        with pytest.raises(InvalidRequest, match=r"unknown model 'huge'; available: tiny.*hosts \(far\).*pull huge` on one of them"):
            await submit(runtime, "generate", {**PROMPT, "model": "huge"})

        await until(lambda: [each.lane for each in runtime.engine.models.reports()] == ["far.device_0"], 5, "the loaded model")
        assert await runtime.unload("tiny") == ["tiny"]

        waiting = await submit(runtime, "generate", PROMPT, device_preference="device_0")

        async def waits() -> bool:
            return (await runtime.tasks.get(waiting)).waiting_for == "a host with the model tiny, which is on far but not on device_0"

        await until(waits, 10, "the reason")
        await runtime.cancel(waiting)
        assert (await ended(runtime, waiting)).status == "cancelled"


async def test_loaded_models_of_a_host_give_way_as_here(tmp_path: Path) -> None:
    far = tmp_path / "far"
    for number, name in enumerate(("tiny", "other", "third")):
        make_tiny_model(far / "models" / name, seed=number)
    way = PipeWay("far", far, arguments=("-m", "tests.engines.hosts.small_agent"))
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way), local=False), max_models=2) as runtime:

        async def loads(name: str, keep_alive: float = 60.0) -> None:
            await completed(runtime, await submit(runtime, "generate", {**PROMPT, "model": name, "keep_alive": keep_alive}))

        def loaded() -> list[str]:
            return [each.name for each in runtime.engine.models.reports()]

        await until(lambda: len(runtime.engine.stored_models().get("far", ())) == 3, 60, "the host's models")
        for name in ("tiny", "other", "third"):
            await loads(name)
        assert loaded() == ["other", "third"], "max_models is 2"
        work = await submit(runtime, "memory_bandwidth", {"size_mb": 100, "iterations": 1})
        await waits_for(runtime, work, "the idle model other is unloaded for it")
        await completed(runtime, work)
        assert loaded() == ["third"], "no more was unloaded than needed"
        await loads("third", 0.2)
        await until(lambda: loaded() == [], 10, "the end of keep_alive")
        assert await runtime.unload() == []
        with pytest.raises(MemoryRefused):
            await submit(runtime, "memory_bandwidth", {"size_mb": 900})


def test_model_of_this_machine_hides_others_of_its_name(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "models" / "tiny")
    settings = Settings(data_dir=tmp_path)
    (here,) = ModelCatalog(settings).known()
    there = [ModelSource("tiny", "/there/tiny", "gguf", 5), ModelSource("other", "/there/other.gguf", "gguf", 6)]
    known = {source.name: source for source in ModelCatalog(settings, lambda: {"far": there}).known()}
    assert known["tiny"] == here
    assert known["other"] == ModelSource("other", "", "gguf", 6)
    assert known["other"].is_copy(there[1])
    assert not here.is_copy(there[0])
