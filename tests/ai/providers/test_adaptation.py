"""Requests are adapted to models that reject a parameter's name or a role, without a second rejection."""

from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.errors import ProviderRefused
from tests.ai.conftest import Provide
from tests.ai.provider_server import Connection, Request, refuses, says
from tests.ai.providers.support import Question, ask

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
MOVED = [{"role": "user", "content": "Be brief.\n\nHello"}]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("400 Bad Request", "System role not supported"),
        ("400 Bad Request", "Only user and assistant roles are supported!"),
        ("400 Bad Request", "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("400 Bad Request", "Unsupported value: 'messages[0].role' does not support 'system' with this model."),
        ("400 Bad Request", "Developer instruction is not enabled for models/gemma-3-27b-it"),
        ("422 Unprocessable Entity", "Unexpected role 'system', expected user"),
        ("422 Unprocessable Entity", "This model doesn't support system messages"),
        ("404 Not Found", "'system' is not one of ['user', 'assistant']"),
        ("400 Bad Request", "Role 'system' is not supported"),
        ("400 Bad Request", "System messages are not currently supported by this model"),
        ("400 Bad Request", 'messages: Unexpected role "system". Use the parameter system'),
        ("400 Bad Request", "Only user, assistant and tool roles are supported, except an initial system message!"),
        ("500 Internal Server Error", "Jinja Exception: System prompts are not supported"),
    ],
)
async def test_instructions_move_if_the_system_role_is_rejected(provide: Provide, status: str, message: str) -> None:
    server = provide(refuses(status, {"error": {"message": message}}), says("Hi"))
    asked = Question(server.url)
    for _ in range(2):
        assert (await asked.run(messages=SYSTEM))["text"] == "Hi"
    await asked.run(messages=SYSTEM, model="other")
    await asked.provider.close()
    assert [request.json["messages"] for request in server.requests] == [SYSTEM, MOVED, MOVED, SYSTEM], "remembered for the model"


@pytest.mark.parametrize(
    "message",
    [
        "The system prompt has 9000 tokens, which do not fit into the context",
        "System messages are not allowed to contain images",
        "System message must not be empty",
        "This model does not support system_fingerprint",
        "The system prompt was rejected, because its content is not allowed",
        "Only users with the roles admin and owner may use this model",
    ],
)
async def test_other_errors_that_mention_the_system_role_are_reported(provide: Provide, message: str) -> None:
    server = provide(refuses("400 Bad Request", {"error": {"message": message}}), says("Hi"))
    with pytest.raises(ProviderRefused, match=message):
        await ask(server.url, messages=SYSTEM)
    assert len(server.requests) == 1


async def test_change_that_did_not_help_is_not_remembered(provide: Provide) -> None:
    server = provide(*[refuses("400 Bad Request", {"error": {"message": "System role not supported"}})] * 2, says("Hi"))
    asked = Question(server.url)
    with pytest.raises(ProviderRefused):
        await asked.run(messages=SYSTEM)
    await asked.run(messages=SYSTEM)
    await asked.provider.close()
    assert [request.json["messages"] for request in server.requests] == [SYSTEM, MOVED, SYSTEM]


async def test_turns_of_one_role_are_joined_if_they_are_rejected(provide: Provide) -> None:
    server = provide(refuses("400 Bad Request", {"error": "Conversation roles must alternate"}), says("Hi"))
    await ask(server.url, messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert server.requests[1].json["messages"] == [{"role": "user", "content": "a\n\nb"}]


async def test_rejection_that_no_change_can_help_is_reported(provide: Provide) -> None:
    server = provide(refuses("400 Bad Request", {"error": "System role not supported"}))
    with pytest.raises(ProviderRefused, match="System role not supported"):
        await ask(server.url)
    assert len(server.requests) == 1
    with pytest.raises(ProviderRefused, match="System role not supported"):
        await ask(server.url, messages=SYSTEM)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Unsupported parameter: 'max_tokens' is not supported with this model.",
        "max_tokens: unknown field",
    ],
)
async def test_several_adaptations_are_combined(provide: Provide, message: str) -> None:
    def answer(connection: Connection, request: Request) -> None:
        sent = request.json
        rejected = message if "max_tokens" in sent else "System role not supported" if sent["messages"][0]["role"] == "system" else None
        (says("Hi") if rejected is None else refuses("400 Bad Request", {"error": {"message": rejected}}))(connection, request)

    server = provide(answer)
    asked = Question(server.url)
    parameters: dict[str, Any] = {"max_tokens": 5}
    for _ in range(2):
        await asked.run(messages=SYSTEM, parameters=parameters)
    await asked.run(messages=SYSTEM)
    await asked.provider.close()
    assert len(server.requests) == 5
    last = server.requests[3].json
    assert (last["messages"], last["max_completion_tokens"]) == (MOVED, 5)
    assert "max_completion_tokens" not in server.requests[4].json


async def test_query_of_the_address_is_sent(provide: Provide) -> None:
    server = provide(says("Hi"))
    address = f"{server.url.removesuffix('/v1')}/openai/deployments/m?api-version=2024-10-21"
    await ask(address, fields={"headers": {"api-key": "env:THE_KEY"}})
    assert server.requests[0].path == "/openai/deployments/m/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_reasoning_is_not_part_of_the_text(provide: Provide, size: int) -> None:
    text = "<think>\nMaybe:\n```python\nwrong\n```\n</think>\n\nHere:\n```python\nright\n```"
    server = provide(says(*(text[start : start + size] for start in range(0, len(text), size))))
    assert (await ask(server.url))["text"] == "Here:\n```python\nright\n```"


async def test_reasoning_opened_by_the_template_is_not_part_of_the_text(provide: Provide) -> None:
    asked = Question(provide(says("Maybe\n", "</think>\n\nHere")).url)
    assert (await asked.run())["text"] == "Here"
    await asked.provider.close()


@pytest.mark.parametrize(("finish", "text"), [("length", "好"), ("stop", "好\ufffd")])
async def test_character_cut_at_max_tokens_is_removed(provide: Provide, finish: str, text: str) -> None:
    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text("好", "\ufffd", finish=finish)

    assert (await ask(provide(answer).url))["text"] == text
