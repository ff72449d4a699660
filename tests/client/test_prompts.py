"""Contract of the client for prompts, over HTTP and embedded."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.client.ai_response import CodeBlock, Reply, Usage, code_blocks
from openruntime_jupyter.client.async_base import AsyncPromptHandle
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import PromptHandle
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend, events
from openruntime_jupyter.client.transport.protocol import Backend, new_key
from openruntime_jupyter.errors import (
    ConversationNotFound,
    InvalidRequest,
    ModelNotFound,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import (
    GET_TASK,
    SUBMIT_PROMPT,
)
from tests.ai.provider_server import providing
from tests.server.ai_support import KEY, profile, steered
from tests.support import running_server


@pytest.fixture(scope="module", params=["http", "embedded"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Return each kind of backend, with a default provider that echoes prompts."""
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


def test_asking_gives_a_handle_whose_result_is_the_answer(client: Client) -> None:
    handle = client.with_options(priority=7, name="greeting").ask("hello", max_tokens=20, temperature=None)
    reply = handle.result(30)
    assert (str(reply), reply.model, reply.provider, reply.finish_reason) == ("You said: hello", "tiny", "cloud", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.tokens_used) == (10, 5, 15)
    assert (handle.status, handle.task.name, handle.task.priority, handle.left_out) == ("completed", "greeting", 7, 0)
    assert reply.task_id == handle.id
    assert repr(handle).startswith("<PromptHandle ai_task_")
    task = client.backend.call(GET_TASK, handle.id)
    assert task.operation == "chat"
    assert task.parameters is not None
    assert task.parameters["parameters"] == {"max_tokens": 20}, "what is None is not sent"


def test_the_same_key_gives_the_same_task(backend: Backend) -> None:
    key = new_key()
    request = {"workflow_type": "system_analysis", "prompt": "why?"}
    assert backend.call(SUBMIT_PROMPT, body=request, key=key).task_id == backend.call(SUBMIT_PROMPT, body=request, key=key, wait=20).task_id


def test_a_handle_gives_the_text_while_it_is_written(client: Client) -> None:
    handle = client.ask("slow word")
    assert "".join(handle) == "You said: slow word"
    assert "".join(client.task(handle.id)) == "You said: slow word", "again, found by its id"  # type: ignore[arg-type]
    assert list(handle.pieces(10)) == [(10, "slow word")]


def test_who_reads_along_is_told_of_a_bad_end(client: Client) -> None:
    with pytest.raises(TaskFailed, match="no such thing"):
        list(client.ask("fail"))
    handle = client.ask("hold it")
    pieces = iter(handle)
    assert next(pieces) == "You said: "
    handle.cancel()
    with pytest.raises(TaskCancelled):
        list(pieces)
    with pytest.raises(TaskCancelled):
        handle.result()


def test_who_stops_reading_cancels_nothing(client: Client) -> None:
    handle = client.ask("hold it")
    pieces = client.backend.tokens(handle.id)
    assert next(pieces) == (0, "You said: ")
    pieces.close()  # type: ignore[attr-defined]
    assert handle.status == "running"
    assert handle.cancel().status == "cancelled"


def test_a_prompt_is_found_again_by_its_id(client: Client) -> None:
    again = client.task(client.ask("hello", "code_generation", language="python", agent="RESEARCHER").id)
    assert isinstance(again, PromptHandle)
    assert again.left_out is None
    assert isinstance(again.result(30), Reply)


def test_prompts_of_a_conversation_go_on_with_it(client: Client) -> None:
    name = f"a name with {uuid4().hex}"
    assert client.ask("one", conversation=name).result(30).text == "You said: one"
    assert client.ask("two", conversation=name).result(30).text == "You said: two"
    assert [turn.prompt for turn in client.conversation(name).messages] == ["one", "two"]
    assert name in {each.name for each in client.conversations()}
    assert client.conversations("unknown name") == []
    assert client.delete_conversation(name).turns == 2
    with pytest.raises(ConversationNotFound, match="Unknown conversation"):
        client.conversation(name)


def test_what_can_be_asked_is_told(client: Client) -> None:
    assert {"DEVELOPER", "ANALYST"} <= {agent.role for agent in client.agents().agents}
    assert {"code_generation", "model_inference"} <= {each.name for each in client.workflows()}
    assert [(each.name, each.default) for each in client.models().profiles] == [("cloud", True)]


def test_a_wrong_question_names_what_is_wrong(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="unknown workflow 'poetry'"):
        client.ask("x", "poetry")
    with pytest.raises(InvalidRequest, match="temperature"):
        client.ask("x", temperature=9)
    with pytest.raises(InvalidRequest, match="memory_limit"):
        client.with_options(memory_limit=10**9).ask("x")
    with pytest.raises(InvalidRequest, match="unknown profile 'missing'"):
        client.ask("x", profile="missing")
    with pytest.raises(ModelNotFound, match="not in memory"):
        client.unload("org/none")
    with pytest.raises(TaskNotFound):
        next(client.backend.tokens("ai_task_none"))


async def test_coroutines_ask_and_read_along(client: Client) -> None:
    async with client.aio as aio:
        handle = await aio.ask("slow word", "model_inference", max_tokens=5)
        assert "".join([piece async for piece in handle]) == "You said: slow word"
        assert (await handle).usage.tokens_used == 15
        assert handle.left_out == 0
        assert isinstance(await aio.task(handle.id), AsyncPromptHandle)
        assert (await (await aio.again(handle.id))).text == "You said: slow word"
        with pytest.raises(TaskFailed, match="no such thing"):
            [piece async for piece in await aio.ask("fail")]
        held = await aio.ask("hold it")
        async for piece in held:
            assert piece == "You said: "
            break
        assert await held.status() == "running", "who stops reading cancels nothing"
        assert (await held.cancel()).status == "cancelled"


async def test_coroutines_use_conversations_agents_and_models(client: Client) -> None:
    async with client.aio as aio:
        name = uuid4().hex
        await (await aio.ask("one", conversation=name))
        assert (await aio.conversation(name)).turns == 1
        assert name in {each.name for each in await aio.conversations()}
        assert (await aio.delete_conversation(name)).turns == 1
        assert (await aio.agents()).agents
        assert await aio.workflows()
        assert [each.name for each in (await aio.models()).profiles] == ["cloud"]
        with pytest.raises(ModelNotFound):
            await aio.unload("org/none")


def test_an_answer_knows_its_code() -> None:
    text = "First:\n```Python\na = 1\n```\nor\n1. so\n   ~~~\n   b = '```'\n   ~~~\nand\n````sh title\n```\necho\n````\n```\nleft open"
    assert list(code_blocks(text)) == [
        CodeBlock("python", "a = 1"),
        CodeBlock("", "b = '```'"),
        CodeBlock("sh", "```\necho"),
        CodeBlock("", "left open"),
    ]
    reply = Reply(text, None, "local", None, Usage(), "ai_task_1")
    assert reply.code_blocks[0] == CodeBlock("python", "a = 1")
    assert reply.code.startswith("a = 1\n\nb = ")


def test_events_are_read_as_the_standard_wants_it() -> None:
    lines = [": comment", "", "event: token", "id: 5", 'data: {"a":', "data:1}", "", "data: plain", "", "event: empty", "", "data: cut off"]
    assert list(events(lines)) == [("token", '{"a":\n1}'), ("message", "plain")]
