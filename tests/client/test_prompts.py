"""What a client promises about prompts, over HTTP and embedded alike."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.client.backend import Backend, new_key
from openruntime_jupyter.client.embedded import EmbeddedBackend
from openruntime_jupyter.client.http import HttpBackend
from openruntime_jupyter.client.prompts_http import events
from openruntime_jupyter.errors import ConversationNotFound, InvalidRequest, ModelNotFound, TaskNotFound
from openruntime_jupyter.runtime.settings import Settings
from tests.ai.provider_server import providing
from tests.server.ai_support import KEY, profile, steered
from tests.support import running_server


@pytest.fixture(scope="module", params=["http", "embedded"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each kind of backend in turn, whose default provider repeats what it is asked."""
    folder = tmp_path_factory.mktemp(request.param)
    with providing(steered) as provider, pytest.MonkeyPatch.context() as patch:
        patch.setenv("THE_KEY", KEY)
        config = profile(provider.url)
        if request.param == "http":
            with running_server(folder, config=config, environment={"THE_KEY": KEY}) as server:
                http = HttpBackend(server.url, server.token)
                yield http
                http.close()
            return
        embedded = EmbeddedBackend(Settings(data_dir=folder, embedded=True, cpu_slots=1), AiConfig(**config["OpenRuntimeApp"]))
        yield embedded
        embedded.stop()


def test_a_prompt_is_answered(backend: Backend) -> None:
    task = backend.prompts.ask({"workflow_type": "model_inference", "prompt": "hello"}, new_key(), wait=20)
    assert (task.status, task.result, task.model_used) == ("completed", "You said: hello", "tiny")
    assert task.answer is not None
    assert task.answer.provider == "cloud"
    assert backend.get(task.task_id).operation == "chat"


def test_the_same_key_gives_the_same_task(backend: Backend) -> None:
    key = new_key()
    request = {"workflow_type": "system_analysis", "prompt": "why?"}
    assert backend.prompts.ask(request, key).task_id == backend.prompts.ask(request, key, wait=20).task_id


def test_the_text_is_read_along_from_any_place(backend: Backend) -> None:
    task = backend.prompts.ask({"workflow_type": "model_inference", "prompt": "slow word"}, new_key())
    assert "".join(text for _, text in backend.prompts.tokens(task.task_id)) == "You said: slow word"
    assert next(backend.prompts.tokens(task.task_id, 10)) == (10, "slow word")


def test_who_stops_reading_cancels_nothing(backend: Backend) -> None:
    task = backend.prompts.ask({"workflow_type": "model_inference", "prompt": "hold it"}, new_key())
    pieces = backend.prompts.tokens(task.task_id)
    assert next(pieces) == (0, "You said: ")
    pieces.close()  # type: ignore[attr-defined]
    assert backend.get(task.task_id).status == "running"
    assert backend.cancel(task.task_id).status == "cancelled"


def test_conversations_are_listed_read_and_erased(backend: Backend) -> None:
    name = f"a name / with {uuid4().hex}".replace("/", "-")
    backend.prompts.ask({"workflow_type": "model_inference", "prompt": "one", "parameters": {"conversation": name}}, new_key(), wait=20)
    assert name in {each.name for each in backend.prompts.conversations()}
    assert [turn.prompt for turn in backend.prompts.conversation(name).messages] == ["one"]
    assert backend.prompts.delete_conversation(name).turns == 1
    with pytest.raises(ConversationNotFound, match="There is no conversation"):
        backend.prompts.conversation(name)
    assert backend.prompts.conversations("nobody of that name") == []


def test_agents_workflows_and_models_are_told(backend: Backend) -> None:
    assert {"DEVELOPER", "ANALYST"} <= {agent.role for agent in backend.prompts.agents().agents}
    assert "code_generation" in {each.name for each in backend.prompts.workflows()}
    assert [(each.name, each.default) for each in backend.prompts.models().profiles] == [("cloud", True)]


def test_what_is_wrong_is_the_same_error(backend: Backend) -> None:
    with pytest.raises(InvalidRequest, match="there is no workflow 'poetry'"):
        backend.prompts.ask({"workflow_type": "poetry", "prompt": "x"}, new_key())
    with pytest.raises(InvalidRequest, match="prompt"):
        backend.prompts.ask({"workflow_type": "model_inference"}, new_key())
    with pytest.raises(ModelNotFound, match="not in memory"):
        backend.prompts.unload("org/none")
    with pytest.raises(TaskNotFound):
        next(backend.prompts.tokens("ai_task_none"))


def test_events_are_read_as_the_standard_wants_it() -> None:
    lines = [": comment", "", "event: token", "id: 5", 'data: {"a":', "data:1}", "", "data: plain", "", "event: empty", "", "data: cut off"]
    assert list(events(lines)) == [("token", '{"a":\n1}'), ("message", "plain")]
