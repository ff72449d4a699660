"""AI service with a real runtime and a provider on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.ai import conversations
from openruntime_jupyter.ai.config import AiConfig
from openruntime_jupyter.ai.insights.rewriting import ModelKind
from openruntime_jupyter.ai.model_selection import Choice
from openruntime_jupyter.ai.service import AiService, _task, host
from openruntime_jupyter.ai.workflows import Shared
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, TaskConflict
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import About, AiRequest, AiTask, Message
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.server.handlers.ai import with_pauses
from tests.ai.conftest import Provide
from tests.ai.provider_server import Connection, ProviderServer, Request, chunk, says
from tests.runtimes import ended, submit, until
from tests.server.ai_support import KEY, profile, steered

ME = Caller("me")
STRANGER = Caller(None, may_execute=False, trusted=False, may_spend=False)
KINDS: tuple[ModelKind, ...] = ("resident", "local", "remote")


@pytest.fixture
def provider(provide: Provide) -> ProviderServer:
    return provide(steered)


@asynccontextmanager
async def serving(folder: Path, url: str | None, **config: Any) -> AsyncIterator[AiService]:
    given = profile(url)["OpenRuntimeApp"] if url is not None else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THE_KEY", KEY)
        service = host(Settings(data_dir=folder, cpu_slots=1), AiConfig(**{**given, **config}))
        await service.runtime.start()
        try:
            yield service
        finally:
            await service.runtime.stop()
            await service.close()


def prompt(text: str, wait: bool = True, **parameters: Any) -> AiRequest:
    return AiRequest(workflow_type="model_inference", prompt=text, parameters=parameters, wait=wait)


async def test_invalid_profile_is_reported_and_disables_no_other(tmp_path: Path, provider: ProviderServer) -> None:
    profiles = {"wrong": {"base_url": "127.0.0.1/v1"}, "good": {"base_url": f" {provider.url} ", "model": "m"}}
    async with serving(tmp_path, None, profiles=profiles) as service:
        answered = await service.get(await service.submit(prompt("hello", profile="good"), ME), None)
        assert answered.result == "You said: hello"
        with pytest.raises(InvalidRequest, match=r"the profile 'wrong' is invalid: profiles\.wrong\.base_url: "):
            await service.submit(prompt("hello", profile="wrong"), ME)
        health = service.runtime.health()
        assert (health.status, len(health.problems)) == ("degraded", 1)
        assert "profiles.wrong.base_url" in health.problems[0]


@pytest.mark.parametrize("given", [{"adapter": "/no/such/adapter"}, {"keep_alive": 1.0}])
async def test_option_of_local_models_is_rejected_for_remote_ones(tmp_path: Path, provider: ProviderServer, given: dict[str, Any]) -> None:
    async with serving(tmp_path, provider.url) as service:
        with pytest.raises(InvalidRequest, match=rf"parameters\.{next(iter(given))}: applies only to local models"):
            await service.submit(prompt("hello", **given), ME)


async def test_thinking_is_not_sent_in_later_turns(tmp_path: Path, provide: Provide) -> None:
    thinking = provide(says("<think>\nMaybe", "\n</think>\n\nHi"))
    async with serving(tmp_path, thinking.url) as service:
        for _ in range(2):
            await service.get(await service.submit(prompt("hello", conversation="c"), ME), None)
        assert [message["content"] for message in thinking.requests[-1].json["messages"]] == ["hello", "Hi", "hello"]


async def test_asynchronous_prompt_is_rejected_while_its_conversation_waits(
    tmp_path: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "PATIENCE", 0.2)
    async with serving(tmp_path, provider.url) as service:
        first = await service.submit(prompt("hold", conversation="x"), ME)
        with pytest.raises(TaskConflict, match=r"conversation 'x' is still pending.*try again"):
            await service.submit(prompt("next", wait=False, conversation="x"), ME)
        other = await service.submit(prompt("another's", wait=False, conversation="x"), Caller("you"))
        assert (await service.get(other, None)).status == "completed"
        # A cancelled turn does not block later ones.
        await service.runtime.cancel(first)
        after = await service.submit(prompt("next", wait=False, conversation="x"), ME)
        assert (await service.get(after, None)).result == "You said: next"


async def test_cancelled_wait_for_conversation_leaves_no_task_and_no_lock(tmp_path: Path, provider: ProviderServer) -> None:
    async with serving(tmp_path, provider.url) as service:
        first = await service.submit(prompt("hold", conversation="x"), ME)
        second = asyncio.ensure_future(service.submit(prompt("never", conversation="x"), ME))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await service.runtime.cancel(first)
        third = await service.submit(prompt("third", conversation="x"), ME)
        assert (await service.get(third, None)).status == "completed"
        assert (await service.runtime.list_tasks(TasksQuery())).total_count == 2


async def test_rejected_prompt_does_not_block_its_conversation(tmp_path: Path, provider: ProviderServer) -> None:
    async with serving(tmp_path, provider.url) as service:
        service.runtime.settings.max_parameters_bytes = 5_000
        with pytest.raises(InvalidRequest, match="max_parameters_bytes"):
            await service.submit(prompt("x" * 10_000, conversation="x"), ME)
        task_id = await service.submit(prompt("short", conversation="x"), ME)
        assert (await service.get(task_id, None)).status == "completed"


async def test_conversation_survives_the_runtime(tmp_path: Path, provider: ProviderServer) -> None:
    for text in ("one", "two"):
        async with serving(tmp_path, provider.url) as service:
            await service.get(await service.submit(prompt(text, conversation="x"), ME), None)
    contents = [message["content"] for message in provider.requests[-1].json["messages"]]
    assert contents == ["one", "You said: one", "two"]


async def test_remote_model_needs_permission_to_spend_and_to_rewrite_insights(tmp_path: Path, provider: ProviderServer) -> None:
    async with serving(tmp_path, provider.url) as service:
        with pytest.raises(NotAllowed, match="costs its owner money"):
            await service.submit(prompt("x"), STRANGER)
        assert [(await service.rewriters(ME))(kind) for kind in KINDS] == [None, None, None]
    assert provider.requests == []
    async with serving(tmp_path, provider.url, insights_wording="remote") as service:
        assert (await service.rewriters(STRANGER))("remote") is None
        rewriter = (await service.rewriters(ME))("remote")
        assert rewriter is not None
        assert await rewriter.ask("word it") == "You said: word it"
        asking = asyncio.ensure_future(rewriter.ask("hold it"))
        await until(lambda: "hold it" in str(provider.requests[-1].body), what="the request to the provider")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not service.runtime.active, what="the end of the task")


async def test_invalid_profile_is_reported_and_the_queue_works(tmp_path: Path) -> None:
    async with serving(tmp_path, None, profiles={"cloud": {"base_url": "ftp://x"}}) as service:
        assert any("profiles.cloud" in problem for problem in service.runtime.health().problems)
        assert (await ended(service.runtime, await submit(service.runtime, "call"))).status == "completed"


async def test_pauses_are_reported_without_losing_items() -> None:
    async def cooperatively() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.1)
        yield 2

    got = [item async for item in with_pauses(cooperatively(), 0.02)]
    assert [item for item in got if item is not None] == [1, 2]
    assert None in got


async def test_tools_and_schemas_are_options_of_prompts(tmp_path: Path, provide: Provide) -> None:
    called = {"index": 0, "id": "call_0", "function": {"name": "weather", "arguments": "{}"}}

    def answer(connection: Connection, request: Request) -> None:
        messages = request.json["messages"]
        connection.begin()
        if "tools" in request.json and messages[-1]["role"] == "user":
            connection.event(chunk(None, tool_calls=[called]))
            connection.event(chunk(None, "tool_calls"))
        else:
            connection.text(f'{{"said": "{messages[-1]["content"]}"}}')

    server = provide(answer)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    form = {"type": "json_schema", "json_schema": {"name": "said", "schema": {"type": "object"}}}
    async with serving(tmp_path, server.url) as service:

        async def ask(text: str, **parameters: Any) -> AiTask:
            return await service.get(await service.submit(prompt(text, conversation="c", **parameters), ME), None)

        first = await ask("hello", tools=tools, reasoning_effort="low")
        assert first.answer is not None
        assert [call.function.name for call in first.answer.tool_calls or ()] == ["weather"]
        assert (server.requests[0].json["tools"], server.requests[0].json["reasoning_effort"]) == (tools, "low")
        calls = first.answer.model_dump()["tool_calls"]
        results = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "rain", "tool_call_id": "call_0"}]
        second = await ask("hello", tools=tools, tool_messages=results, response_format=form)
        assert second.result == '{"said": "rain"}'
        assert [message["role"] for message in server.requests[-1].json["messages"]] == ["user", "assistant", "tool"]
        await ask("more")
        assert [message["content"] for message in server.requests[-1].json["messages"]] == ["hello", '{"said": "rain"}', "more"]
        with pytest.raises(InvalidRequest, match=r"tool_messages: must have only the roles assistant and tool, not user"):
            await ask("hello", tool_messages=[{"role": "user", "content": "x"}])
        local = _task_of("generate", response_format=form, presence_penalty=1.0)
        assert (local["response_format"]["type"], local["presence_penalty"]) == ("json_schema", 1.0)


def _task_of(operation: str, **parameters: Any) -> dict[str, Any]:
    """Return the parameters of the task for a prompt with these parameters."""
    shared = Shared(**parameters)
    made = _task(prompt("hello"), shared, Choice(None, None, None), [Message(role="user", content="hello")], About())
    assert made.operation == operation
    return made.parameters
