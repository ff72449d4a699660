"""Requests to a provider, and the handling of its responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openruntime_jupyter.ai.profiles import profiles_from
from openruntime_jupyter.ai.providers.remote import RemoteProvider
from openruntime_jupyter.errors import InvalidRequest, KeyMissing, OpenRuntimeError, ProviderRefused, ProviderUnreachable
from openruntime_jupyter.schemas.ai import Answer
from tests.ai.provider_server import Connection, Request, chunk, providing, refuses, says, usage
from tests.ai.providers.asking import KEY, Question, ask


def test_an_answer_has_the_providers_figures_and_our_times() -> None:
    with providing(says("Hel", "lo", figures=(3, 2))) as server:
        answer = Answer(**ask(server.url))
    assert (answer.text, answer.provider, answer.model_used, answer.finish_reason) == ("Hello", "p", "tiny", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.tokens_used) == (3, 2, 5)
    assert answer.tokens_per_second is not None
    assert answer.tokens_per_second > 0
    assert answer.time_to_first_token_s is not None
    assert answer.time_to_first_token_s > 0
    assert answer.prompt_tokens_per_second is None


def test_figures_that_are_not_told_are_null() -> None:
    with providing(says("Hel", "lo")) as server:
        answer = ask(server.url)
    assert {answer[name] for name in ("prompt_tokens", "completion_tokens", "tokens_used", "tokens_per_second")} == {None}


@pytest.mark.parametrize("wrong", [-1, "many", 2.5, None])
def test_figures_that_are_none_are_null(wrong: Any) -> None:
    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text("Hi")
        connection.event({**usage(1, 1), "usage": {"prompt_tokens": wrong, "completion_tokens": wrong, "total_tokens": wrong}})

    with providing(answer) as server:
        assert ask(server.url)["tokens_used"] is None


def test_an_empty_text_with_a_finish_is_an_answer() -> None:
    with providing(says()) as server:
        answer = ask(server.url)
    assert (answer["text"], answer["finish_reason"], answer["time_to_first_token_s"]) == ("", "stop", None)


def test_only_what_is_set_is_sent() -> None:
    with providing(says("Hi")) as server:
        ask(server.url)
    assert server.requests[0].json == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_parameters_go_as_they_are_and_over_the_profiles() -> None:
    with providing(says("Hi")) as server:
        ask(
            server.url,
            fields={"parameters": {"temperature": 0.1, "top_p": 0.9, "seed": 1}},
            parameters={"temperature": 0.5, "seed": None, "anything_new": [1]},
            model="other",
        )
    sent = server.requests[0].json
    assert (sent["model"], sent["temperature"], sent["top_p"], sent["anything_new"]) == ("other", 0.5, 0.9, [1])
    assert "seed" not in sent


def test_headers_are_the_profiles_and_nothing_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", f"foreign-{name}")
    environ = {"THE_KEY": KEY, "GATE": "gate-secret-123", "OPENAI_CUSTOM_HEADERS": "X-Foreign: foreign-header\nX-Mine: foreign-too"}
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", environ["OPENAI_CUSTOM_HEADERS"])
    with providing(says("Hi")) as server:
        ask(server.url, environ=environ, fields={"headers": {"X-Api-Key": "env:GATE", "X-Mine": "yes"}, "organization": "org"})
        ask(server.url, environ=environ, fields={"api_key": None})
    first, second = (request.headers for request in server.requests)
    assert first["authorization"] == f"Bearer {KEY}"
    assert (first["x-api-key"], first["x-mine"], first["openai-organization"]) == ("gate-secret-123", "yes", "org")
    assert "authorization" not in second
    assert not [value for headers in (first, second) for value in headers.values() if "foreign" in value or "placeholder" in value.lower()]


def test_a_provider_that_does_not_stream_is_understood() -> None:
    whole = {
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 7},
    }
    with providing(refuses("200 OK", whole)) as server:
        answer = ask(server.url)
    assert (answer["text"], answer["tokens_used"], answer["tokens_per_second"]) == ("Hello", 7, None)


def test_text_in_parts_and_halves_of_characters_are_text() -> None:
    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.event(chunk(None, content=[{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hé"}]))
        connection.event(chunk("\ud83d\ude00 \udc00"))
        connection.event(chunk(None, "stop"))

    with providing(answer) as server:
        assert ask(server.url)["text"] == "Hé😀 \ufffd"


@pytest.mark.parametrize("refusal", [{"error": {"message": "Unknown field: stream_options"}}, {"error": "include_usage is not known"}])
def test_a_provider_that_refuses_the_option_for_figures_is_asked_without_it_from_then_on(refusal: Any) -> None:
    async def body(url: str) -> None:
        asked = Question(url)
        for _ in range(2):
            assert (await asked.run())["text"] == "Hi"
        await asked.provider.close()

    with providing(refuses("400 Bad Request", refusal), says("Hi")) as server:
        asyncio.run(body(server.url))
    assert ["stream_options" in request.json for request in server.requests] == [True, False, False]


def test_max_tokens_takes_its_other_name_where_it_is_wanted() -> None:
    said = {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}}
    with providing(refuses("400 Bad Request", said), says("Hi")) as server:
        ask(server.url, parameters={"max_tokens": 5})
    first, second = (request.json for request in server.requests)
    assert first["max_tokens"] == second["max_completion_tokens"] == 5
    assert "max_tokens" not in second


def test_a_refusal_of_what_was_not_sent_is_a_refusal() -> None:
    refusing = providing(refuses("400 Bad Request", {"error": "max_completion_tokens is too large"}))
    with refusing as server, pytest.raises(ProviderRefused, match="too large"):
        ask(server.url)
    assert len(server.requests) == 1


def test_loopback_needs_no_proxy_and_others_go_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with providing(says("Hi")) as server, providing(says("by proxy"), refuses("502 Bad Gateway", "")) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(server.url)["text"] == "Hi"
        assert not proxy.requests
        assert ask("http://models.test/v1")["text"] == "by proxy"
        assert proxy.requests[0].path == "http://models.test/v1/chat/completions"
        with pytest.raises(ProviderUnreachable, match="HTTPS_PROXY"):
            ask("https://models.test/v1")
        assert (proxy.requests[1].method, proxy.requests[1].path) == ("CONNECT", "models.test:443")


def test_clients_are_kept_and_closed() -> None:
    async def body(url: str) -> None:
        asked = Question(url)
        await asyncio.gather(asked.run(), asked.run())
        (made,) = asked.provider._clients._made.values()
        client = made.result().openai
        await asked.provider.close()
        assert client.is_closed()
        with pytest.raises(OpenRuntimeError, match="is closed"):
            await asked.run()

    with providing(says("Hi")) as server:
        asyncio.run(body(server.url))


def test_a_key_that_changes_is_used_at_once() -> None:
    environ = {"THE_KEY": "first-key-000"}

    async def body(url: str) -> None:
        asked = Question(url, environ)
        await asked.run()
        environ["THE_KEY"] = "second-key-000"
        await asked.run()
        await asked.provider.close()

    with providing(says("Hi")) as server:
        asyncio.run(body(server.url))
    assert [request.headers["authorization"][7:] for request in server.requests] == ["first-key-000", "second-key-000"]


def test_a_missing_key_is_told_without_asking_anybody() -> None:
    with (
        providing(says("Hi")) as server,
        pytest.raises(KeyMissing, match=r"no key in the environment variable THE_KEY: set it in the environment"),
    ):
        ask(server.url, environ={})
    assert not server.requests


def test_a_prompt_that_names_no_model_or_profile_where_none_is_set_is_wrong() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters.model: is required"):
        ask("http://127.0.0.1:1/v1", fields={"model": None})
    with pytest.raises(InvalidRequest, match="unknown profile 'q'; available: p"):
        ask("http://127.0.0.1:1/v1", profile="q")
    with pytest.raises(InvalidRequest, match="no profile is configured: set OPENAI_API_KEY"):
        asyncio.run(
            RemoteProvider(profiles_from({}, {})).run({"messages": [{"role": "user", "content": "Hi"}]}, Question("http://x").listener)
        )
