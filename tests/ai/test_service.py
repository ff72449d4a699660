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
from openruntime_jupyter.ai.factory import host
from openruntime_jupyter.ai.service import AiService
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, TaskConflict, Unavailable
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.ai import AiRequest
from openruntime_jupyter.server.http.sse import with_pauses
from tests.ai.provider_server import ProviderServer, providing
from tests.runtimes import ended, live, submit, until
from tests.server.ai_support import KEY, profile, steered

ME = Caller("me")
STRANGER = Caller(None, may_execute=False, trusted=False, may_spend=False)


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


def test_an_asynchronous_prompt_is_refused_after_a_while_where_its_conversation_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(provider: ProviderServer) -> None:
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

    monkeypatch.setattr(conversations, "PATIENCE", 0.2)
    with providing(steered) as provider:
        live(body(provider))


def test_who_stops_waiting_for_the_conversation_leaves_no_task_and_no_lock(tmp_path: Path) -> None:
    async def body(provider: ProviderServer) -> None:
        async with serving(tmp_path, provider.url) as service:
            first = await service.submit(prompt("hold", conversation="x"), ME)
            second = asyncio.ensure_future(service.submit(prompt("never", conversation="x"), ME))
            await asyncio.sleep(0.05)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            await service.runtime.cancel(first)
            third = await service.submit(prompt("third", conversation="x"), ME)
            assert (await service.get(third, None)).status == "completed"
            assert (await service.runtime.list_tasks()).total_count == 2

    with providing(steered) as provider:
        live(body(provider))


def test_a_prompt_that_is_refused_does_not_hold_its_conversation(tmp_path: Path) -> None:
    async def body(provider: ProviderServer) -> None:
        async with serving(tmp_path, provider.url) as service:
            service.runtime.settings.max_parameters_bytes = 5_000
            with pytest.raises(InvalidRequest, match="max_parameters_bytes"):
                await service.submit(prompt("x" * 10_000, conversation="x"), ME)
            task_id = await service.submit(prompt("short", conversation="x"), ME)
            assert (await service.get(task_id, None)).status == "completed"

    with providing(steered) as provider:
        live(body(provider))


def test_a_conversation_is_still_there_for_the_next_runtime(tmp_path: Path) -> None:
    async def body(provider: ProviderServer) -> None:
        for text in ("one", "two"):
            async with serving(tmp_path, provider.url) as service:
                await service.get(await service.submit(prompt(text, conversation="x"), ME), None)
        contents = [message["content"] for message in provider.requests[-1].json["messages"]]
        assert contents == ["one", "You said: one", "two"]

    with providing(steered) as provider:
        live(body(provider))


def test_a_stranger_spends_nothing(tmp_path: Path) -> None:
    async def body(provider: ProviderServer) -> None:
        async with serving(tmp_path, provider.url) as service:
            with pytest.raises(NotAllowed, match="costs its owner money"):
                await service.submit(prompt("x"), STRANGER)
            assert service.worders(STRANGER)("remote") is None
        assert provider.requests == []

    with providing(steered) as provider:
        live(body(provider))


def test_a_remote_model_words_insights_only_where_that_is_allowed(tmp_path: Path) -> None:
    async def body(provider: ProviderServer) -> None:
        async with serving(tmp_path, provider.url) as service:
            assert [service.worders(ME)(which) for which in ("resident", "local", "remote")] == [None, None, None]
        async with serving(tmp_path, provider.url, insights_wording="remote") as service:
            rewriter = service.worders(ME)("remote")
            assert rewriter is not None
            assert await rewriter.ask("word it") == "You said: word it"
            asking = asyncio.ensure_future(rewriter.ask("hold it"))
            await until(lambda: "hold it" in str(provider.requests[-1].body), what="the provider is asked")
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: not service.runtime.active, what="the task has ended")

    with providing(steered) as provider:
        live(body(provider))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AiConfig(profiles={"cloud": {"base_url": "ftp://x"}}), "profiles.cloud"),
        (AiConfig(default_profile="x"), "default_profile: unknown profile 'x'"),
    ],
    ids=["a wrong address", "a default that is not there"],
)
async def test_a_profile_that_is_wrong_is_told_and_the_queue_works_all_the_same(tmp_path: Path, config: AiConfig, said: str) -> None:
    service = host(Settings(data_dir=tmp_path, cpu_slots=1), config, {})
    await service.runtime.start()
    try:
        assert any(said in problem for problem in service.runtime.health().problems)
        assert (await ended(service.runtime, await submit(service.runtime, "call"))).status == "completed"
    finally:
        await service.runtime.stop()
        await service.close()


def test_with_neither_provider_nor_model_it_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with serving(tmp_path, None) as service:
            with pytest.raises(Unavailable, match=r"OPENAI_API_KEY.*jupyter openruntime pull"):
                await service.submit(prompt("x"), ME)

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENRUNTIME_AI_BASE_URL", "OPENRUNTIME_AI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    live(body())


async def test_silence_is_told_and_loses_nothing() -> None:
    async def cooperatively() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.1)
        yield 2

    got = [item async for item in with_pauses(cooperatively(), 0.02)]
    assert [item for item in got if item is not None] == [1, 2]
    assert None in got
