"""Tools, JSON schemas, reasoning and log-probabilities of remote models. An option that a provider ignores fails the prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openruntime_jupyter.errors import InvalidRequest, ProviderBroken
from openruntime_jupyter.schemas.ai import Answer
from tests.ai.conftest import Provide
from tests.ai.provider_server import Answer as Respond
from tests.ai.provider_server import Connection, Request, chunk, refuses, says
from tests.ai.providers.support import Question, ask

TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": {"type": "object"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": value}}}


def call(name: str, arguments: str, number: int = 0) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*deltas: Any, finish: str = "tool_calls") -> Respond:
    """Return a response with these `tool_calls` in its chunks."""

    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        for delta in deltas:
            connection.event(chunk(None, tool_calls=delta))
        connection.event(chunk(None, finish))

    return answer


def piece(index: int | None, name: str | None = None, arguments: Any = None, call_id: str | None = None) -> dict[str, Any]:
    given = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return {field: value for field, value in given.items() if value is not None}


async def test_options_are_sent_and_tool_calls_are_joined(provide: Provide) -> None:
    deltas = (
        [piece(0, "weather", "", "call_0")],
        [piece(0, arguments='{"city"')],
        [piece(1, "now", None, "call_1")],
        [piece(0, arguments=': "Ulm"}')],
    )
    server = provide(calls(*deltas))
    answer = Answer(**await ask(server.url, parameters={"tools": [TOOL], "tool_choice": "required", "logprobs": True, "seed": 1}))
    assert answer.tool_calls is not None
    assert [each.model_dump() for each in answer.tool_calls] == [call("weather", '{"city": "Ulm"}'), call("now", "{}", 1)]
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    sent = server.requests[0].json
    assert (sent["tools"], sent["tool_choice"], sent["logprobs"]) == ([TOOL], "required", True)


@pytest.mark.parametrize(
    "deltas",
    [
        ([piece(None, "weather", "{}"), piece(None, "now", "{}")],),
        ([piece(0, "weather", "{}", "a")], [piece(0, "now", "{}", "b")]),
        ([piece(0, "weather", {})], [piece(1, "now", {})]),
        ([piece(None, "weather", "{")], [piece(None, arguments="}")], [None, 5, {"function": None}], [piece(None, "now", "{}")]),
    ],
    ids=["without an index", "with one index", "with objects", "in pieces without an index"],
)
async def test_deviating_tool_calls_are_understood(provide: Provide, deltas: Any) -> None:
    answer = Answer(**await ask(provide(calls(*deltas, finish="stop")).url, parameters={"tools": [TOOL]}))
    assert answer.tool_calls is not None
    assert [(each.function.name, json.loads(each.function.arguments)) for each in answer.tool_calls] == [("weather", {}), ("now", {})]
    assert all(each.id for each in answer.tool_calls)


async def test_calls_and_results_are_sent_with_reasoning_if_accepted(provide: Provide) -> None:
    server = provide(refuses("400 Bad Request", {"error": "Unknown parameter: 'messages[1].reasoning_content'"}), says("Rain"))
    called = {"role": "assistant", "content": None, "tool_calls": [call("weather", "{}")]}
    result = {"role": "tool", "content": "rain", "tool_call_id": "call_0"}
    question = {"role": "user", "content": "?"}
    asked = Question(server.url)
    for _ in range(2):
        assert (await asked.run(messages=[question, {**called, "reasoning": "Hm"}, result], parameters={"tools": [TOOL]}))["text"] == "Rain"
    await asked.provider.close()
    first, *others = (request.json["messages"] for request in server.requests)
    assert first == [question, {**called, "reasoning_content": "Hm"}, result]
    assert others == [[question, called, result]] * 2


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_separate_reasoning_is_returned(provide: Provide, field: str) -> None:
    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.event(chunk(None, **{field: "Let me "}))
        connection.event(chunk(None, **{field: "think\n"}))
        connection.text("Hi")

    asked = Question(provide(answer).url)
    found = await asked.run()
    await asked.provider.close()
    assert (found["reasoning"], found["text"]) == ("Let me think", "Hi")
    assert [message for _, message in asked.listener.progresses] == ["reasoning", "responding"]


@pytest.mark.parametrize("text", ["<think>\nHm\n</think>\nHi", "Hm\n</think>\n\nHi"])
async def test_reasoning_in_the_text_is_returned(provide: Provide, text: str) -> None:
    asked = Question(provide(says(text)).url)
    found = await asked.run()
    await asked.provider.close()
    assert (found["reasoning"], found["text"]) == ("Hm", "Hi")
    assert (await ask(provide(says("Hi")).url))["reasoning"] is None


@pytest.mark.parametrize("details", [{"prompt_tokens_details": {"cached_tokens": 7}}, {"prompt_cache_hit_tokens": 7}])
async def test_cached_tokens_and_logprobs_are_returned(provide: Provide, details: dict[str, Any]) -> None:
    token = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": None}]}

    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        said = chunk("Hi")
        said["choices"][0]["logprobs"] = {"content": [token, {"token": 5}]}
        connection.event(said)
        connection.event(chunk(None, "stop"))
        connection.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1, **details}})

    found = await ask(provide(answer).url, parameters={"logprobs": True, "top_logprobs": 1})
    assert (found["cached_tokens"], found["logprobs"]) == (7, [token])


@pytest.mark.parametrize(
    ("parameters", "text", "problem"),
    [
        (schema(CITY), "Ulm", r"response_format: the text is not JSON \(.*\); use a model or server that supports response_format"),
        (schema(CITY), '```json\n{"city": "Ulm"}\n```', "is not JSON"),
        (schema(CITY), '{"city": 5}', r"does not fit the schema \(\$.city: 5 is not of type 'string'\)"),
        (schema(CITY), '{"city": "Ulm", "x": 1}', "'x' was unexpected"),
        (schema({"$ref": "http://127.0.0.1:9/x"}), "{}", "could not be compared with the schema"),
        ({"response_format": {"type": "json_object"}}, "[1]", "is not of type 'object'"),
        ({"tools": [TOOL], "tool_choice": "required"}, "Rain", "called no tool, although tool_choice requires it"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "Rain", "called no tool"),
    ],
)
async def test_ignored_option_fails_the_prompt(provide: Provide, parameters: dict[str, Any], text: str, problem: str) -> None:
    with pytest.raises(ProviderBroken, match=problem):
        await ask(provide(says(text)).url, parameters=parameters)


async def test_tool_call_without_tools_fails_the_prompt(provide: Provide) -> None:
    with pytest.raises(ProviderBroken, match="called the tool 'weather', but the request has no tools"):
        await ask(provide(calls([piece(0, "weather", "{}")])).url)


async def test_fitting_and_truncated_text_is_returned(provide: Provide) -> None:
    patterns = {**CITY, "patternProperties": {"^(a+)+$": {}}, "properties": {"city": {"pattern": "^(a+)+$"}}}
    for given in (
        CITY,
        patterns,
        {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}},
    ):
        hard = json.dumps({"city": "a" * 40 + "!"})
        assert (await ask(provide(says(hard)).url, parameters=schema(given)))["text"] == hard

    def cut(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text('{"ci', finish="length")

    assert (await ask(provide(cut).url, parameters=schema(CITY)))["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\.0\.function\.name"),
        ({"tools": [TOOL, TOOL]}, "several functions named 'weather'"),
        ({"tool_choice": "auto"}, "tool_choice: requires tools"),
        (schema({"type": "text"}), "the JSON schema is invalid: type: 'text'"),
    ],
)
async def test_invalid_option_is_rejected_without_a_request(provide: Provide, parameters: dict[str, Any], problem: str) -> None:
    server = provide(says("Hi"))
    with pytest.raises(InvalidRequest, match=problem):
        await ask(server.url, parameters=parameters)
    assert not server.requests
