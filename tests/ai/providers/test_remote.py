"""Requests to a provider, the handling of its responses, and cancelled prompts, which close the connection."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.errors import InvalidRequest, KeyMissing, OpenRuntimeError, ProviderRefused, ProviderUnreachable
from openruntime_jupyter.schemas.ai import Answer
from tests.ai.conftest import Provide
from tests.ai.provider_server import Connection, Request, chunk, providing, refuses, says, usage
from tests.ai.providers.support import KEY, Listener, Question, ask


async def test_answer_has_figures_and_times(provide: Provide) -> None:
    server = provide(says("Hel", "lo", figures=(3, 2)))
    answer = Answer(**await ask(server.url))
    assert (answer.text, answer.provider, answer.model_used, answer.finish_reason) == ("Hello", "p", "tiny", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.tokens_used) == (3, 2, 5)
    assert answer.tokens_per_second is not None
    assert answer.tokens_per_second > 0
    assert answer.time_to_first_token_s is not None
    assert answer.time_to_first_token_s > 0
    assert answer.prompt_tokens_per_second is None


@pytest.mark.parametrize("figures", [None, -1, "many", 2.5])
async def test_missing_and_invalid_figures_are_null(provide: Provide, figures: Any) -> None:
    def respond(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text("Hel", "lo")
        if figures is not None:
            connection.event(usage(figures, figures) if figures == -1 else {**usage(1, 1), "usage": {"total_tokens": figures}})

    answer = await ask(provide(respond).url)
    assert {answer[name] for name in ("prompt_tokens", "completion_tokens", "tokens_used", "tokens_per_second")} == {None}


async def test_finished_empty_text_is_an_answer(provide: Provide) -> None:
    server = provide(says())
    answer = await ask(server.url)
    assert (answer["text"], answer["finish_reason"], answer["time_to_first_token_s"]) == ("", "stop", None)


async def test_only_set_parameters_are_sent(provide: Provide) -> None:
    server = provide(says("Hi"))
    await ask(server.url)
    assert server.requests[0].json == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_parameters_override_the_profile(provide: Provide) -> None:
    server = provide(says("Hi"))
    await ask(
        server.url,
        fields={"parameters": {"temperature": 0.1, "top_p": 0.9, "seed": 1}},
        parameters={"temperature": 0.5, "seed": None, "anything_new": [1]},
        model="other",
    )
    sent = server.requests[0].json
    assert (sent["model"], sent["temperature"], sent["top_p"], sent["anything_new"]) == ("other", 0.5, 0.9, [1])
    assert "seed" not in sent


async def test_headers_come_only_from_the_profile(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", f"foreign-{name}")
    environ = {"THE_KEY": KEY, "GATE": "gate-secret-123", "OPENAI_CUSTOM_HEADERS": "X-Foreign: foreign-header\nX-Mine: foreign-too"}
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", environ["OPENAI_CUSTOM_HEADERS"])
    server = provide(says("Hi"))
    await ask(server.url, environ=environ, fields={"headers": {"X-Api-Key": "env:GATE", "X-Mine": "yes"}, "organization": "org"})
    await ask(server.url, environ=environ, fields={"api_key": None})
    first, second = (request.headers for request in server.requests)
    assert first["authorization"] == f"Bearer {KEY}"
    assert (first["x-api-key"], first["x-mine"], first["openai-organization"]) == ("gate-secret-123", "yes", "org")
    assert "authorization" not in second
    assert not [value for headers in (first, second) for value in headers.values() if "foreign" in value or "placeholder" in value.lower()]


async def test_response_without_streaming_is_accepted(provide: Provide) -> None:
    whole = {
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 7},
    }
    server = provide(refuses("200 OK", whole))
    answer = await ask(server.url)
    assert (answer["text"], answer["tokens_used"], answer["tokens_per_second"]) == ("Hello", 7, None)


async def test_text_parts_and_split_characters_are_joined(provide: Provide) -> None:
    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.event(chunk(None, content=[{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hé"}]))
        connection.event(chunk("\ud83d\ude00 \udc00"))
        connection.event(chunk(None, "stop"))

    server = provide(answer)
    assert (await ask(server.url))["text"] == "Hé😀 \ufffd"


@pytest.mark.parametrize("refusal", [{"error": {"message": "Unknown field: stream_options"}}, {"error": "include_usage is not known"}])
async def test_rejected_usage_option_is_omitted_from_then_on(provide: Provide, refusal: Any) -> None:
    server = provide(refuses("400 Bad Request", refusal), says("Hi"))
    asked = Question(server.url)
    for _ in range(2):
        assert (await asked.run())["text"] == "Hi"
    await asked.provider.close()
    assert ["stream_options" in request.json for request in server.requests] == [True, False, False]


async def test_max_tokens_is_renamed_if_required(provide: Provide) -> None:
    said = {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}}
    server = provide(refuses("400 Bad Request", said), says("Hi"))
    await ask(server.url, parameters={"max_tokens": 5})
    first, second = (request.json for request in server.requests)
    assert first["max_tokens"] == second["max_completion_tokens"] == 5
    assert "max_tokens" not in second


async def test_rejection_of_unsent_parameter_is_not_retried(provide: Provide) -> None:
    server = provide(refuses("400 Bad Request", {"error": "max_completion_tokens is too large"}))
    with pytest.raises(ProviderRefused, match="too large"):
        await ask(server.url)
    assert len(server.requests) == 1


async def test_only_loopback_bypasses_the_proxy(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    server = provide(says("Hi"))
    with providing(says("by proxy"), refuses("502 Bad Gateway", "")) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert (await ask(server.url))["text"] == "Hi"
        assert not proxy.requests
        assert (await ask("http://models.test/v1"))["text"] == "by proxy"
        assert proxy.requests[0].path == "http://models.test/v1/chat/completions"
        with pytest.raises(ProviderUnreachable, match="HTTPS_PROXY"):
            await ask("https://models.test/v1")
        assert (proxy.requests[1].method, proxy.requests[1].path) == ("CONNECT", "models.test:443")


async def test_client_is_reused_and_closed(provide: Provide) -> None:
    asked = Question(provide(says("Hi")).url)
    await asyncio.gather(asked.run(), asked.run())
    (made,) = asked.provider._clients.values()
    client = made.result().openai
    await asked.provider.close()
    assert client.is_closed()
    with pytest.raises(OpenRuntimeError, match="is closed"):
        await asked.run()


async def test_changed_key_is_used_at_once(provide: Provide) -> None:
    environ = {"THE_KEY": "first-key-000"}
    server = provide(says("Hi"))
    asked = Question(server.url, environ)
    await asked.run()
    environ["THE_KEY"] = "second-key-000"
    await asked.run()
    await asked.provider.close()
    assert [request.headers["authorization"][7:] for request in server.requests] == ["first-key-000", "second-key-000"]


async def test_missing_key_is_reported_without_a_request(provide: Provide) -> None:
    server = provide(says("Hi"))
    with pytest.raises(KeyMissing, match=r"no key in the environment variable THE_KEY: set it in the environment"):
        await ask(server.url, environ={})
    assert not server.requests


async def test_missing_model_or_profile_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters.model: is required"):
        await ask("http://127.0.0.1:1/v1", fields={"model": None})
    with pytest.raises(InvalidRequest, match="unknown profile 'q'; available: local, p"):
        await ask("http://127.0.0.1:1/v1", profile="q")
    with pytest.raises(InvalidRequest, match="no profile is configured: set OPENAI_API_KEY"):
        await RemoteProvider(profiles_from({}, {})).run({"messages": [{"role": "user", "content": "Hi"}]}, Listener())


class Watch:
    """Endless response that records when the client disconnects."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.asked = threading.Event()
        self.disconnected = threading.Event()

    def __call__(self, connection: Connection, request: Request) -> None:
        self.asked.set()
        if self.pieces:
            connection.begin()
        for _ in range(self.pieces):
            connection.event(chunk("Hello "))
        if connection.gone():
            self.disconnected.set()


@pytest.mark.parametrize("pieces", [0, 1, 50], ids=["before the first byte", "after a piece", "amid the text"])
async def test_cancel_closes_the_connection(provide: Provide, pieces: int) -> None:
    watch = Watch(pieces)
    asked = Question(provide(watch).url)
    task = asyncio.ensure_future(asked.run())
    await asyncio.to_thread(watch.asked.wait, 20)
    while len(asked.listener.pieces) < pieces:
        await asyncio.sleep(0.005)
    assert not watch.disconnected.is_set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(watch.disconnected.wait, 10)
    await asked.provider.close()


async def test_cancel_leaves_other_prompts_running(provide: Provide) -> None:
    watch = Watch(1)
    asked = Question(provide(watch).url)
    first, second = (asyncio.ensure_future(asked.run()) for _ in range(2))
    while len(asked.listener.pieces) < 2:
        await asyncio.sleep(0.005)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.to_thread(watch.disconnected.wait, 10)
    assert not second.done()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asked.provider.close()
