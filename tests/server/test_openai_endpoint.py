"""`/v1` with OpenAI's own client, sync and async, stand-alone and below the base URL of a JupyterHub user."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from openruntime_jupyter.schemas.chat_completions import ChatCompletionChunk
from tests.ai.provider_server import Connection, ProviderServer, Request, chunk, providing, refuses, says, usage
from tests.gguf_twin import write_twin
from tests.scripted_model import TOOL_TEMPLATE, make_scripted_model
from tests.server.ai_support import KEY, profile, steered
from tests.support import JUPYTER, STANDALONE, Server, running_server, wait_until
from tests.tiny_model import make_thinking_model, make_tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "other-tools.md"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WRONG_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "no such type"}}}]
ENVIRONMENT = {"THE_KEY": KEY}
QUESTION: list[Any] = [{"role": "user", "content": "Who waits?"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(steered) as serving:
        yield serving


@pytest.fixture(scope="module")
def scripted() -> Iterator[ProviderServer]:
    with providing(says("unused")) as serving:
        yield serving


@pytest.fixture(scope="module")
def config(provider: ProviderServer, scripted: ProviderServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the configuration of a server with local models and the profiles `cloud` and `scripted`."""
    folder = tmp_path_factory.mktemp("v1")
    (folder / "models").mkdir()
    write_twin(make_tiny_model(folder / "tiny", context=4096), folder / "models" / "tiny.gguf")
    caller = make_scripted_model(folder / "with-tools", TWO_CALLS, TOOL_TEMPLATE)
    write_twin(caller, folder / "models" / "with-tools.gguf")
    write_twin(make_thinking_model(folder / "with-reasoning"), folder / "models" / "with-reasoning.gguf")
    made = profile(provider.url)
    made["OpenRuntimeApp"]["profiles"]["scripted"] = {"base_url": scripted.url, "max_retries": 0}
    made["OpenRuntimeApp"] |= {"default_profile": "local", "models_dir": str(folder / "models"), "cpu_slots": 1}
    return made


@pytest.fixture(scope="module")
def alone(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("alone"), STANDALONE, config=config, environment=ENVIRONMENT) as running:
        yield running


@pytest.fixture(scope="module")
def of_hub(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hub")
    with running_server(folder, JUPYTER, config=config, environment=ENVIRONMENT, base_url="/user/jo/") as running:
        yield running


@pytest.fixture(params=["alone", "of_hub"])
def server(request: pytest.FixtureRequest) -> Server:
    """Return a stand-alone server, and one below the base URL of a JupyterHub user."""
    found: Server = request.getfixturevalue(request.param)
    return found


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=str(server.token), http_client=openai.DefaultHttpxClient(trust_env=False))


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


@pytest.fixture
def plain(alone: Server) -> Iterator[openai.OpenAI]:
    """Return a client of the stand-alone server, for what does not depend on the place of the server."""
    with client_of(alone) as made:
        yield made


def test_models_are_listed_by_their_ids(client: openai.OpenAI) -> None:
    assert {each.id: each.owned_by for each in client.models.list()} == {
        "default": "local",
        "tiny": "local",
        "with-tools": "local",
        "with-reasoning": "local",
        "cloud/tiny": "cloud",
    }, "a profile without a default model is not listed"
    assert client.models.retrieve("cloud/tiny").id == "cloud/tiny"
    with pytest.raises(openai.NotFoundError, match="Unknown model 'huge'"):
        client.models.retrieve("huge")


def test_whole_answer_is_a_task_with_priority_name_and_notebook(client: openai.OpenAI, server: Server) -> None:
    headers = {"X-OpenRuntime-Priority": "8", "X-OpenRuntime-Name": "from a tool", "X-OpenRuntime-Notebook": "work/a.ipynb"}
    made = client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION, max_tokens=8, extra_headers=headers)
    answer = made.parse()
    (choice,) = answer.choices
    assert (answer.model, choice.message.role, choice.finish_reason) == ("tiny", "assistant", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.usage.prompt_tokens_details is not None
    task = server.get(f"/tasks/{answer.id}")
    assert made.request_id == answer.id
    assert (task["operation"], task["priority"], task["name"], task["notebook"], task["origin"], task["status"]) == (
        *("generate", 8, "from a tool", "work/a.ipynb", "rest"),
        "completed",
    )
    assert task["result"]["output"]["text"] == choice.message.content


def test_stream_has_the_text_of_the_task_and_usage(client: openai.OpenAI, server: Server) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 8, "temperature": 0}
    *chunks, last = client.chat.completions.create(model="default", messages=QUESTION, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "length"]
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], 8)
    assert server.get(f"/tasks/{last.id}")["result"]["output"]["text"] == text
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in [*chunks, last]}) == 1
    with client.chat.completions.with_streaming_response.create(model="tiny", messages=QUESTION, stream=True, max_tokens=4) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        ChatCompletionChunk.model_validate_json(line.removeprefix("data: "))


def test_remote_model_gets_options_and_messages(plain: openai.OpenAI, provider: ProviderServer) -> None:
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
    messages: list[Any] = [
        *({"role": "developer", "content": "Be short."}, {"role": "user", "content": "one"}),
        *({"role": "assistant", "content": "two", "refusal": None, "annotations": []}, {"role": "user", "content": parts, "name": "jo"}),
    ]
    answer = plain.chat.completions.create(
        model="cloud/tiny",
        messages=messages,
        temperature=0.5,
        seed=3,
        stop=["x"],
        user="jo",
        n=1,
        presence_penalty=0,
        logprobs=False,
        reasoning_effort="xhigh",
    )
    assert (answer.choices[0].message.content, answer.model) == ("You said: in parts", "cloud/tiny")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 5)
    body = provider.requests[-1].json
    assert [message["content"] for message in body["messages"]] == ["Be short.", "one", "two", "in parts"]
    assert (body["temperature"], body["seed"], body["stop"], body["user"], body["reasoning_effort"]) == (0.5, 3, ["x"], "jo", "xhigh")
    assert not {"presence_penalty", "logprobs", "n"} & set(body)


TWO_CALLS = """Both.
<tool_call>
{"name": "weather", "arguments": {"city": "Berlin"}}
</tool_call>
<tool_call>
{"name": "time", "arguments": {"city": "Rome"}}
</tool_call>"""
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"The {name} of a city.", "parameters": CITY}}
    for name in ("weather", "time")
]


def calls(connection: Connection, request: Request) -> None:
    """Call two tools at once after some reasoning, in pieces."""
    connection.begin()
    connection.event(chunk(None, reasoning_content="Both are needed."))
    for index, name in enumerate(("weather", "time")):
        connection.event(chunk(None, tool_calls=[{"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name}}]))
        for piece in ('{"city":', ' "Berlin"}'):
            connection.event(chunk(None, tool_calls=[{"index": index, "function": {"arguments": piece}}]))
    connection.event(chunk(None, "tool_calls"))
    connection.event({**usage(10, 5), "usage": {**usage(10, 5)["usage"], "prompt_tokens_details": {"cached_tokens": 8}}})
    connection.event("[DONE]")


def assembled(deltas: list[ChoiceDelta]) -> list[dict[str, Any]]:
    """Return the tool calls of a streamed response. The first piece of each has index, id and name, and the others more arguments."""
    made: list[dict[str, Any]] = []
    for piece in [piece for delta in deltas for piece in delta.tool_calls or ()]:
        assert piece.function is not None
        assert piece.function.arguments is not None
        if piece.index == len(made):
            assert (piece.type, bool(piece.id), bool(piece.function.name), piece.function.arguments) == ("function", True, True, "")
            made.append({"id": piece.id, "type": "function", "function": {"name": piece.function.name, "arguments": ""}})
        else:
            assert (piece.id, piece.type, piece.function.name) == (None, None, None)
        made[piece.index]["function"]["arguments"] += piece.function.arguments
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_two_tools_are_called_at_once_and_answered(plain: openai.OpenAI, scripted: ProviderServer, stream: bool) -> None:
    scripted.script(calls, says("Sunny at noon."))
    options: Any = {"model": "scripted/tiny", "tools": TOOLS, "tool_choice": "required"}
    if stream:
        chunks = list(plain.chat.completions.create(messages=QUESTION, stream=True, stream_options={"include_usage": True}, **options))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        made: list[Any] = assembled(deltas)
        ends, told = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices], chunks[-1].usage
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": made}
    else:
        answer = plain.chat.completions.create(messages=QUESTION, **options)
        said: Any = answer.choices[0].message
        made, reasoning, message = [call.model_dump() for call in said.tool_calls], said.reasoning_content, said.model_dump()
        ends, told = [answer.choices[0].finish_reason], answer.usage
        assert said.content is None
    assert [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in made] == [
        ("call_0", "weather", {"city": "Berlin"}),
        ("call_1", "time", {"city": "Berlin"}),
    ]
    assert (ends[-1], reasoning) == ("tool_calls", "Both are needed.")
    assert told is not None
    assert told.prompt_tokens_details is not None
    assert told.prompt_tokens_details.cached_tokens == 8
    results: list[Any] = [{"role": "tool", "tool_call_id": call["id"], "content": "fine"} for call in made]
    messages: list[Any] = [*QUESTION, message, *results]
    reply = plain.chat.completions.create(model="scripted/tiny", messages=messages, tools=TOOLS)
    assert reply.choices[0].message.content == "Sunny at noon."
    sent = scripted.requests[-1].json["messages"]
    assert [each["role"] for each in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [each["tool_call_id"] for each in sent[2:]]
    assert scripted.requests[0].json["tools"] == TOOLS


@pytest.mark.parametrize("stream", [False, True])
def test_truncated_call_ends_by_length(plain: openai.OpenAI, scripted: ProviderServer, stream: bool) -> None:
    def truncated(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.event(chunk(None, tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"ci'}}]))
        connection.event(chunk(None, "length"))
        connection.event("[DONE]")

    scripted.script(truncated)
    made: Any = plain.chat.completions.create(model="scripted/tiny", messages=QUESTION, tools=TOOLS, stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    assert choices[-1].finish_reason == "length"


def test_local_model_calls_two_tools_or_one(plain: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return plain.chat.completions.create(model="with-tools", messages=QUESTION, tools=TOOLS, **options)

    (both,) = ask().choices
    assert (both.message.content, both.finish_reason) == ("Both.\n", "tool_calls")
    assert [json.loads(call.function.arguments) for call in both.message.tool_calls] == [{"city": "Berlin"}, {"city": "Rome"}]
    chunks = list(ask(stream=True, parallel_tool_calls=False))
    (call,) = assembled([chunk.choices[0].delta for chunk in chunks])
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Berlin"})
    streamed = assembled([chunk.choices[0].delta for chunk in ask(stream=True)])
    assert [json.loads(call["function"]["arguments"]) for call in streamed] == [{"city": "Berlin"}, {"city": "Rome"}]
    assert "<tool_call>" not in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with pytest.raises(openai.BadRequestError, match="chat template has none") as caught:
        plain.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS)
    assert caught.value.param == "tools"


def test_local_model_fits_a_schema_and_tells_probabilities(plain: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wish: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    (choice,) = plain.chat.completions.create(
        model="tiny", messages=QUESTION, response_format=wish, max_tokens=64, logprobs=True, top_logprobs=2
    ).choices
    assert json.loads(choice.message.content or "") in ({"n": 1}, {"n": 2})
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(len(token.top_logprobs) <= 2 and token.logprob <= 0 for token in choice.logprobs.content)
    wish["json_schema"]["schema"] = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError, match="no such type") as caught:
        plain.chat.completions.create(model="tiny", messages=QUESTION, response_format=wish)
    assert str(caught.value.param).startswith("response_format")


def test_schema_and_logprobs_of_a_remote_model(plain: openai.OpenAI, scripted: ProviderServer) -> None:
    class City(BaseModel):
        name: str

    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        text = '{"name": "Berlin"}'
        token = {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": text, "logprob": -0.5, "bytes": None}]}
        connection.event({**chunk(text, "stop"), "choices": [{**chunk(text, "stop")["choices"][0], "logprobs": {"content": [token]}}]})
        connection.event("[DONE]")

    scripted.script(answer)
    answered = plain.chat.completions.parse(model="scripted/tiny", messages=QUESTION, response_format=City, logprobs=True, top_logprobs=1)
    (choice,) = answered.choices
    assert choice.message.parsed == City(name="Berlin")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].top_logprobs[0].logprob == -0.5
    sent = scripted.requests[-1].json
    assert (sent["response_format"]["type"], sent["logprobs"], sent["top_logprobs"]) == ("json_schema", True, 1)
    assert "name" in sent["response_format"]["json_schema"]["schema"]["properties"]


def test_reasoning_and_calls_of_a_remote_model_are_streamed_as_they_come(client: openai.OpenAI, scripted: ProviderServer) -> None:
    pieces: list[dict[str, Any]] = [
        {"reasoning_content": "First"},
        {"reasoning_content": " this."},
        {"content": "So:"},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "time"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "Rome"}'}}]},
    ]
    seen = threading.Semaphore(0)

    def answer(connection: Connection, request: Request) -> None:
        connection.begin()
        for piece in pieces:
            connection.event(chunk(None, **piece))
            assert seen.acquire(timeout=20), f"{piece} was not passed on before the next piece"
        connection.event(chunk(None, "tool_calls"))
        connection.event("[DONE]")

    scripted.script(answer)
    deltas = []
    for each in client.chat.completions.create(model="scripted/tiny", messages=QUESTION, tools=TOOLS, stream=True):
        deltas.append(each.choices[0].delta)
        seen.release()
    *parts, _ = [delta.model_dump(exclude_unset=True) for delta in deltas]
    assert parts[0].pop("role") == "assistant"
    parts[3]["tool_calls"][0]["function"].pop("arguments")
    assert parts == pieces


def test_reasoning_of_a_local_model_is_streamed(plain: openai.OpenAI, alone: Server) -> None:
    running = False
    attempts = 0
    while not running and attempts < 10:  # the model ends its reasoning at random
        attempts += 1
        chunks = plain.chat.completions.create(model="with-reasoning", messages=QUESTION, stream=True, max_tokens=2000, temperature=1.0)
        first = next(chunks)
        reasons = bool(getattr(first.choices[0].delta, "reasoning_content", ""))
        running = reasons and alone.get(f"/tasks/{first.id}")["status"] == "running"
        chunks.close()
    assert running


def test_async_clients_share_the_queue(server: Server) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=str(server.token), http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
        ) as client:

            async def stream(text: str) -> str:
                chunks = await client.chat.completions.create(model="cloud", messages=[{"role": "user", "content": text}], stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4)
            *texts, last = await asyncio.gather(stream("a"), stream("b"), whole)
            return [*texts, last.choices[0].message.role]

    assert asyncio.run(ask()) == ["You said: a", "You said: b", "assistant"]


def test_closed_stream_cancels_the_task(client: openai.OpenAI, server: Server) -> None:
    chunks = client.chat.completions.create(model="cloud/tiny", messages=[{"role": "user", "content": "hold"}], stream=True)
    first = next(chunks)
    assert first.choices[0].delta.content == "You said: "
    assert server.get(f"/tasks/{first.id}")["status"] == "running"
    chunks.close()
    assert wait_until(lambda: (status := server.get(f"/tasks/{first.id}")["status"]) != "running" and status, 30) == "cancelled"


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"model": "a/b/c"}, openai.NotFoundError, "model"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"extra_body": {"best_of": 3}}, openai.BadRequestError, "best_of"),
        ({"logit_bias": {"7": 1}}, openai.BadRequestError, "logit_bias"),
        ({"seed": -1}, openai.BadRequestError, "seed"),
        ({"extra_headers": {"X-OpenRuntime-Priority": "11"}}, openai.BadRequestError, "X-OpenRuntime-Priority"),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "stop"),
        ({"extra_body": {"stop": [3]}}, openai.BadRequestError, "stop"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"model": "cloud/tiny", "tools": WRONG_TOOLS}, openai.BadRequestError, "tools"),
        ({"reasoning_effort": "xhigh"}, openai.BadRequestError, "reasoning_effort"),
        ({"model": "clod/tiny"}, openai.NotFoundError, "model"),
        ({"model": "scripted"}, openai.NotFoundError, "model"),
    ],
    ids=str,
)
def test_rejected_option_is_named(plain: openai.OpenAI, options: dict[str, Any], kind: type[openai.APIStatusError], param: str) -> None:
    with pytest.raises(kind) as caught:
        plain.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_async_client_gets_the_same_errors(server: Server) -> None:
    async def codes() -> list[tuple[int, str | None, str | None]]:
        found = []
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1",
            api_key=str(server.token),
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            asked: list[dict[str, Any]] = [
                {"extra_headers": {"Authorization": "Bearer x"}},  # first: later requests have a cookie
                *({"model": "clod/tiny"}, {"top_p": 2}, {"messages": [{"role": "user", "content": "x" * 20_000_000}]}),
                {"model": "cloud/tiny", "messages": [{"role": "user", "content": "fail"}]},
            ]
            for options in asked:
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "stream": True, **options})
                found.append((caught.value.status_code, caught.value.code, caught.value.param))
        return found

    assert asyncio.run(codes()) == [
        *((401, "invalid_api_key", None), (404, "model_not_found", "model"), (400, "invalid_request", "top_p")),
        *((413, "body_too_large", None), (503, "provider_refused", None)),
    ]


def test_picture_is_rejected_with_its_place(plain: openai.OpenAI) -> None:
    picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError, match="text") as caught:
        plain.chat.completions.create(model="tiny", messages=picture)
    assert str(caught.value.param).startswith("messages.0.content")


def test_wrong_token_is_an_authentication_error(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="token") as caught:
        client.with_options(api_key="wrong").chat.completions.create(model="tiny", messages=QUESTION)
    assert (caught.value.code, caught.value.response.headers["WWW-Authenticate"]) == ("invalid_api_key", "Bearer")
    other = server.request("POST", "/v1/embeddings", json={})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_failed_task_is_an_error_and_is_not_repeated(plain: openai.OpenAI, alone: Server, provider: ProviderServer, stream: bool) -> None:
    before = len(provider.requests)
    with pytest.raises(openai.InternalServerError, match="no such thing") as caught:
        plain.chat.completions.create(model="cloud/tiny", messages=[{"role": "user", "content": "fail"}], stream=stream)
    assert (caught.value.status_code, caught.value.code, len(provider.requests)) == (503, "provider_refused", before + 1)
    too_long: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError, match="4,096") as rejected:
        plain.chat.completions.create(model="tiny", messages=too_long, stream=stream)
    assert (rejected.value.param, rejected.value.code) == ("messages", "context_length_exceeded"), "some programs then shorten the messages"


def test_client_that_gives_up_cancels_the_task(plain: openai.OpenAI, alone: Server) -> None:
    with pytest.raises(openai.APITimeoutError):
        plain.with_options(timeout=0.5, max_retries=0).chat.completions.create(
            model="cloud/tiny", messages=[{"role": "user", "content": "hold on"}], extra_headers={"X-OpenRuntime-Name": "impatient"}
        )

    def ended() -> bool:
        (task,) = alone.get("/tasks", params={"name": "impatient"})["tasks"]
        return bool(task["status"] == "cancelled")

    wait_until(ended, 30)


def test_busy_provider_is_a_rate_limit(plain: openai.OpenAI, scripted: ProviderServer) -> None:
    scripted.script(refuses("429 Too Many Requests", {"error": {"message": "slow down"}}))
    with pytest.raises(openai.RateLimitError, match="slow down") as caught:
        plain.with_options(max_retries=0).chat.completions.create(model="scripted/tiny", messages=QUESTION)
    assert (caught.value.status_code, caught.value.type) == (429, "rate_limit_error")


def test_missing_permission_and_missing_model(jupyter: Server) -> None:
    with openai.OpenAI(
        base_url=f"{jupyter.url}/v1", api_key=str(jupyter.token), http_client=openai.DefaultHttpxClient(trust_env=False)
    ) as client:
        with pytest.raises(openai.PermissionDeniedError, match="write on resource: openruntime") as denied:
            client.chat.completions.create(model="default", messages=QUESTION, extra_headers={"X-Deny": "write:openruntime"})
        assert denied.value.type == "permission_error"
        assert list(client.models.list()) == []
        with pytest.raises(openai.InternalServerError, match="openruntime pull") as missing:
            client.chat.completions.create(model="default", messages=QUESTION)
    assert (missing.value.status_code, missing.value.code, missing.value.response.headers["X-Should-Retry"]) == (503, "no_model", "false")


def test_request_without_token_gets_no_remote_model(server: Server) -> None:
    """A stand-alone server lets local programs use local models; `fits` checks that every error has OpenAI's format."""
    found = server.client.get(f"{server.url}/v1/models")
    if server.url == server.root:  # stand-alone: the same system user, who may spend
        assert [each["id"] for each in found.json()["data"]] == ["default", "tiny", "with-reasoning", "with-tools", "cloud/tiny"]
    else:
        assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("language", ["python", "bash"])
def test_example_of_the_page_runs(server: Server, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    monkeypatch.setenv("TOKEN", str(server.token))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    code = code.replace("http://localhost:8000", server.url)
    if language == "python":
        exec(code, {})
    else:
        shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
        assert json.loads(shown)["model"] == "tiny"


def test_page_may_send_the_headers_of_openais_client(server: Server) -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Headers": "authorization,x-stainless-os,x-other"}
    told = httpx.options(f"{server.url}/v1/chat/completions", headers=asked, trust_env=False).headers["Access-Control-Allow-Headers"]
    assert {"x-stainless-os", "X-OpenRuntime-Priority"} <= set(told.split(", "))
    assert "x-other" not in told
