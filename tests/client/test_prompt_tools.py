"""Python functions as tools, and objects of a schema."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from openruntime_jupyter.client.ai_response import Reply, ToolRun
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.tools import LONGEST_RESULT, FunctionTool
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.errors import InvalidRequest, OpenRuntimeError
from tests.ai.provider_server import Connection, ProviderServer, Request, chunk, providing
from tests.gguf_twin import write_twin
from tests.scripted_model import TOOL_TEMPLATE, make_scripted_model
from tests.server.ai_support import KEY, profile
from tests.support import running_server

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
"""Text that the local model writes."""


class City(BaseModel):
    """Place with a number of inhabitants."""

    name: str
    inhabitants: int = Field(ge=0)


def scripted(connection: Connection, request: Request) -> None:
    """Respond as the prompt says: `call NAME ARGUMENTS; NAME ARGUMENTS` calls tools once, `loop` always, `say TEXT` responds."""
    messages = request.json["messages"]
    prompt = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    results = [message["content"] for message in messages if message["role"] == "tool"]
    connection.begin()
    if prompt.startswith("say "):
        connection.text(prompt.removeprefix("say "))
        return
    if prompt.startswith("truncate "):
        connection.text(prompt.removeprefix("truncate "), finish="length")
        return
    if results and not prompt.startswith("loop "):
        connection.text("It is ", " and ".join(results))
        return
    connection.event(chunk("Let me look. ", reasoning_content="Hm"))
    for number, each in enumerate(prompt.partition(" ")[2].split("; ")):
        name, _, arguments = each.partition(" ")
        piece = {"index": number, "id": f"call_{number}", "function": {"name": name, "arguments": arguments}}
        connection.event(chunk(None, tool_calls=[piece]))
    connection.event(chunk(None, "length" if prompt.startswith("cut ") else "tool_calls"))


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with providing(scripted) as server:
        yield server


@pytest.fixture(scope="module")
def client(provider: ProviderServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, models = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("models")
    write_twin(make_scripted_model(folder / "scripted", CALL, TOOL_TEMPLATE), models / "caller.gguf")
    config = profile(provider.url)
    config["OpenRuntimeApp"]["models_dir"] = str(models)
    with (
        running_server(folder, config=config, environment={"THE_KEY": KEY}) as server,
        Client(HttpBackend(server.url, server.token)) as client,
    ):
        yield client


def weather(city: str, days: Annotated[int, Field(ge=1)] = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """Return the weather of a city."""
    return {"city": city, "days": days, "unit": unit}


def broken() -> None:
    """Fail."""
    raise KeyError("no data")


def where() -> str:
    """Return the thread."""
    return threading.current_thread().name


def test_functions_run_until_the_response(client: Client, provider: ProviderServer) -> None:
    handle = client.ask('call weather {"city": "Ulm", "days": "3"}; where {}', tools=[weather, where], conversation="tools")
    first = handle.id
    reply = handle.result(60)
    here = threading.current_thread().name
    assert reply.text == f'It is {{"city":"Ulm","days":3,"unit":"C"}} and {here}'
    assert reply.calls == (
        ToolRun("weather", {"city": "Ulm", "days": "3"}, '{"city":"Ulm","days":3,"unit":"C"}'),
        ToolRun("where", {}, here),
    )
    assert reply.task_id == handle.id != first
    assert handle.result(0).calls == reply.calls, "not run again"
    sent = provider.requests[-1].json
    definition = next(each["function"] for each in sent["tools"] if each["function"]["name"] == "weather")
    assert definition["description"] == "Return the weather of a city."
    assert definition["parameters"]["required"] == ["city"]
    assert definition["parameters"]["properties"]["days"]["minimum"] == 1
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "tool", "tool"]
    assert sent["messages"][1]["content"] == "Let me look. "
    turns = client.conversation("tools").messages
    assert [(turn.prompt.partition(" ")[0], turn.answer) for turn in turns] == [("call", reply.text)]


def test_local_model_calls_functions_and_keeps_schema(client: Client) -> None:
    handle = client.ask("go", model="caller", tools=[weather], max_rounds=1, max_tokens=100)
    with pytest.raises(OpenRuntimeError, match="called tools in 2 rounds"):  # this model always writes the same
        handle.result(120)
    assert [(run.arguments, run.failed) for run in handle.calls] == [({"city": "Ulm"}, False)] * 2
    assert client.ask("go", model="caller", schema=bool, max_tokens=20).result(120) in (True, False)


def test_errors_of_functions_are_sent_to_the_model(client: Client) -> None:
    prompt = 'call broken {}; weather {"days": 0}; weather {oops; other {}'
    reply = client.ask(prompt, tools=[weather, broken]).result(60)
    assert [call.failed for call in reply.calls] == [True] * 4
    missing, invalid, unknown = (call.result for call in reply.calls[1:])
    assert reply.calls[0].result == "Error: KeyError: 'no data'"
    assert missing == "Error: invalid arguments: city: Missing required argument; days: Input should be greater than or equal to 1"
    assert invalid.startswith("Error: invalid arguments: Invalid JSON")
    assert "unknown tool 'other'; available: weather, broken" in unknown
    assert reply.calls[2].arguments == "{oops"


def test_rounds_are_limited(client: Client, provider: ProviderServer) -> None:
    before = len(provider.requests)
    handle = client.ask("loop where {}", tools=[where], max_rounds=2)
    for _ in range(2):  # functions are not run again
        with pytest.raises(OpenRuntimeError, match="called tools in 3 rounds without a response: raise max_rounds"):
            handle.result(60)
    assert len(provider.requests) == before + 3
    assert len(handle.calls) == 3


def test_truncated_calls_run_no_function(client: Client) -> None:
    handle = client.ask("cut where", tools=[where])
    with pytest.raises(OpenRuntimeError, match="before its tool calls were complete: raise max_tokens"):
        handle.result(60)
    assert handle.calls == ()


def test_text_of_all_rounds_is_streamed(client: Client) -> None:
    handle = client.ask("call where {}", tools=[where])
    assert "".join(handle) == f"Let me look. It is {threading.current_thread().name}"
    assert len(handle.reply(0).calls) == 1


def test_defined_tools_are_left_to_the_caller(client: Client) -> None:
    definition = {"type": "function", "function": {"name": "mine", "parameters": {"type": "object"}}}
    reply = client.ask("call mine {}", tools=[definition, where], tool_choice="required").result(60)
    assert [(call.id, call.function.name) for call in reply.tool_calls] == [("call_0", "mine")]
    assert (reply.calls, reply.reasoning, reply.text) == ((), "Hm", "Let me look. ")


async def test_asynchronous_functions_run_on_the_loop(client: Client) -> None:
    async def on_loop() -> str:
        """Return the thread."""
        await asyncio.sleep(0)
        return threading.current_thread().name

    handle = await client.aio.ask("call on_loop {}; where {}; broken {}", tools=[on_loop, where, broken])
    reply = await handle.result(60)
    assert isinstance(reply, Reply)
    assert reply.calls == handle.calls
    assert [call.failed for call in reply.calls] == [False, False, True]
    assert reply.calls[0].result == threading.current_thread().name != reply.calls[1].result
    streamed = await client.aio.ask("call on_loop {}", tools=[on_loop])
    assert "".join([piece async for piece in streamed]) == f"Let me look. It is {threading.current_thread().name}"
    with pytest.raises(InvalidRequest, match=r"on_loop is a coroutine function: use it with client\.aio\.ask"):
        client.ask("call on_loop {}", tools=[on_loop]).result()


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (City, '{"name": "Ulm", "inhabitants": 5}', City(name="Ulm", inhabitants=5)),
        (City.model_json_schema(), '{"name": "Ulm", "inhabitants": 5}', {"name": "Ulm", "inhabitants": 5}),
        (list[City], '[{"name": "Ulm", "inhabitants": 5}]', [City(name="Ulm", inhabitants=5)]),
    ],
)
async def test_response_is_an_object_of_the_schema(client: Client, provider: ProviderServer, schema: Any, text: str, value: Any) -> None:
    handle = client.ask(f"say {text}", schema=schema)
    assert handle.result(60) == value
    reply = handle.reply(0)
    assert (reply.text, reply.value, reply.provider) == (text, value, "cloud")
    form = provider.requests[-1].json["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"]["type"] in ("object", "array")
    assert await (await client.aio.ask(f"say {text}", schema=schema)).result(60) == value


def test_object_follows_tool_calls(client: Client) -> None:
    def city() -> str:
        """Return a city."""
        return "Ulm"

    text = client.ask("call city {}", tools=[city]).result(60).text
    assert text == "It is Ulm"
    with pytest.raises(OpenRuntimeError, match="ignored response_format"):
        client.ask("call city {}", tools=[city], schema=City).result(60)


def test_wrong_and_truncated_objects_are_errors(client: Client) -> None:
    with pytest.raises(OpenRuntimeError, match=r"ignored response_format.*inhabitants: -1"):
        client.ask('say {"name": "Ulm", "inhabitants": -1}', schema=City).result(60)
    with pytest.raises(OpenRuntimeError, match="truncated at max_tokens before its JSON was complete"):
        client.ask('truncate {"name"', schema=City).result(60)


@pytest.mark.parametrize("function", [lambda x: x, abs, lambda a, /, b: a])
def test_function_without_name_or_signature_is_rejected(function: Any) -> None:
    with pytest.raises(InvalidRequest, match="tools: "):
        FunctionTool(function)


def test_type_without_schema_is_rejected(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="no JSON schema can be made of"):
        client.ask("say x", schema=threading.Thread)


def test_long_result_is_truncated(client: Client) -> None:
    def long() -> str:
        """Return much."""
        return "x" * (LONGEST_RESULT + 5)

    (call,) = client.ask("call long {}", tools=[long]).result(60).calls
    assert len(call.result) == LONGEST_RESULT
    assert json.dumps(call.arguments) == "{}"
