"""Language models of other hosts: found by name, format and size, and used where they are."""

from __future__ import annotations

from pathlib import Path

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.engines.hosts.finder import HostsSetup
from openruntime_jupyter.local_models.catalog import ModelCatalog
from openruntime_jupyter.notebook.display.tables import ModelTable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.values import ModelSource
from tests.pipe_finder import PipeFinder, PipeWay
from tests.runtimes import ME, completed, ended, runtime_in, submit, until
from tests.tiny_model import make_tiny_model

PROMPT = {"model": "tiny", "prompt": "a task", "max_tokens": 4, "keep_alive": 60}


async def test_task_runs_where_its_model_is(tmp_path: Path) -> None:
    way = PipeWay("far", tmp_path / "far")
    make_tiny_model(tmp_path / "far" / "models" / "tiny")
    async with runtime_in(tmp_path / "near", hosts=HostsSetup(PipeFinder(way))) as runtime:
        await until(lambda: runtime.engine.stored_models().get("far"), 30, "the host's models")
        task = await completed(runtime, await submit(runtime, "generate", PROMPT))
        assert task.device_used == "far.device_0"
        (host,) = runtime.hosts()
        assert host.models == ["tiny"]
        service = AiService(runtime, AiConfig(), RemoteProvider(profiles_from({}, {}), {}))
        listed = await service.models(ME)
        assert [(each.name, each.hosts, each.path) for each in listed.models] == [("tiny", ["far"], None)]
        (shown,) = ModelTable(listed).content()
        assert "hosts" in shown
        assert "far" in shown

        await until(lambda: [each.lane for each in runtime.engine.models.reports()] == ["far.device_0"], 5, "the loaded model")
        assert await runtime.unload("tiny") == ["tiny"]

        waiting = await submit(runtime, "generate", PROMPT, device_preference="device_0")

        async def waits() -> bool:
            return (await runtime.tasks.get(waiting)).waiting_for == "a host with the model tiny, and none has it"

        await until(waits, 10, "the reason")
        await runtime.cancel(waiting)
        assert (await ended(runtime, waiting)).status == "cancelled"


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
