"""Every fault of a provider becomes a clear error, never an empty response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openruntime_jupyter.errors import ProviderBroken, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from tests.ai.conftest import Provide
from tests.ai.provider_server import Answer, Connection, Request, chunk, refuses, says, usage
from tests.ai.providers.support import KEY, ask
from tests.support import free_port

PAGE = "<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body>\n\n<p>data: nothing</p></body></html>"


def sends(*events: Any, version: str = "1.1") -> Answer:
    """Return an answer that streams these events."""

    def answer(connection: Connection, request: Request) -> None:
        connection.begin(version=version)
        for event in events:
            connection.event(event)

    return answer


def cut_within_a_chunk(connection: Connection, request: Request) -> None:
    connection.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    data = f"data: {json.dumps(chunk('Hel'))}\n\n"
    connection.send(f"{len(data):x}\r\n{data}\r\n400\r\ndata: ")


def no_http(connection: Connection, request: Request) -> None:
    connection.send("SSH-2.0-OpenSSH_9.6\r\n")


def hangs_up(connection: Connection, request: Request) -> None:
    return


FAULTS: dict[str, tuple[Answer, type[ProviderError], str]] = {
    "a web page with status 200": (
        refuses("200 OK", PAGE, "text/html"),
        ProviderBroken,
        "a web page, 'Welcome to nginx!': check the end of base_url",
    ),
    "a web page as a stream": (
        refuses("200 OK", PAGE, "text/event-stream"),
        ProviderBroken,
        "sent no response: check that base_url",
    ),
    "an empty object": (refuses("200 OK", {}), ProviderBroken, "no choices"),
    "an empty body": (refuses("200 OK", ""), ProviderBroken, "invalid JSON (nothing)"),
    "no JSON": (refuses("200 OK", "{oops"), ProviderBroken, "invalid JSON ({oops)"),
    "an error with status 200": (refuses("200 OK", {"error": "model is asleep"}), ProviderBroken, "model is asleep"),
    "choices that are null": (refuses("200 OK", {"model": "m", "choices": None}), ProviderBroken, "invalid completion"),
    "no choice": (refuses("200 OK", {"model": "m", "choices": []}), ProviderBroken, "sent no response"),
    "choices that are no list": (refuses("200 OK", {"choices": "many"}), ProviderBroken, "invalid completion"),
    "a choice of nothing": (refuses("200 OK", {"choices": [None, 5, "x"]}), ProviderBroken, "sent no response"),
    "a message without a finish": (
        refuses("200 OK", {"choices": [{"message": {"content": "Hi"}}]}),
        ProviderBroken,
        "ended the response early, after 2 characters",
    ),
    "empty objects as chunks": (sends({}, {}, "[DONE]"), ProviderBroken, "no choices"),
    "texts as chunks": (sends('"overloaded"', "[DONE]"), ProviderBroken, "overloaded"),
    "figures alone": (sends(usage(3, 0), "[DONE]"), ProviderBroken, "sent no response"),
    "nothing at all": (sends(), ProviderBroken, "sent no response"),
    "a stream that is cut": (
        sends(chunk("Hel"), chunk("lo")),
        ProviderBroken,
        "early, after 5 characters: try again",
    ),
    "a stream that is cut silently": (sends(chunk("Hel"), chunk("lo"), version="1.0"), ProviderBroken, "after 5 characters"),
    "a done stream without a finish": (sends(chunk("Hel"), "[DONE]"), ProviderBroken, "after 3 characters"),
    "a stream that is cut within a chunk": (cut_within_a_chunk, ProviderUnreachable, "closed the connection"),
    "an invalid JSON line": (sends(chunk("Hel"), '{"choices": [{'), ProviderBroken, "invalid JSON"),
    "bytes that are not text": (refuses("200 OK", "data: \udcff\n\n", "text/event-stream"), ProviderBroken, "not text"),
    "an error in the stream": (
        sends(chunk("Hel"), {"error": {"message": "out of memory"}}),
        ProviderBroken,
        "during the response: out of memory",
    ),
    "an error in the stream as a text": (sends({"error": "out of memory"}), ProviderBroken, "during the response: out of memory"),
    "a filter": (
        sends(chunk("Bad"), chunk(None, "content_filter")),
        ProviderRefused,
        "content filter, after 3 characters: rephrase",
    ),
    "an error as finish": (sends(chunk("Hel"), chunk(None, "error")), ProviderBroken, "with an error, after 3 characters"),
    "a refusal": (sends(chunk(None, refusal="I can't."), chunk(None, "stop")), ProviderRefused, "declined to respond: I can't"),
    "reasoning alone": (sends(chunk(None, reasoning_content="Hm"), chunk(None, "stop")), ProviderBroken, "reasoning but no text"),
    "reasoning to the end": (sends(chunk(None, reasoning="Hm"), chunk(None, "length")), ProviderBroken, "raise max_tokens"),
    "tool calls alone": (
        sends(chunk(None, tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}]), chunk(None, "tool_calls")),
        ProviderBroken,
        "tool calls",
    ),
    "an error that is a text": (refuses("400 Bad Request", {"error": "temperature is too hot"}), ProviderRefused, "temperature is too hot"),
    "a text for an error": (refuses("400 Bad Request", "no such thing", "text/plain"), ProviderRefused, "no such thing"),
    "a wrong key": (
        refuses("401 Unauthorized", {"error": {"message": "wrong"}}),
        ProviderRefused,
        "the key of env:THE_KEY: wrong; set a valid key",
    ),
    "no credit": (refuses("402 Payment Required", {"error": {"message": "empty"}}), ProviderBusy, "payment: empty"),
    "no permission": (refuses("403 Forbidden", {"message": "not you"}), ProviderRefused, "denied access: not you"),
    "an unknown model": (
        refuses("404 Not Found", {"error": "no tiny here"}),
        ProviderRefused,
        "no tiny here; check model and the end of base_url",
    ),
    "an unknown address": (refuses("404 Not Found", PAGE, "text/html"), ProviderRefused, "a web page, 'Welcome to nginx!'; check model"),
    "another method": (refuses("405 Method Not Allowed", ""), ProviderRefused, "no chat completions"),
    "its own time-out": (refuses("408 Request Timeout", ""), ProviderUnreachable, "Request Timeout; try again"),
    "a conflict": (refuses("409 Conflict", {"detail": "busy"}), ProviderRefused, "status 409: busy"),
    "a long prompt": (refuses("413 Payload Too Large", ""), ProviderRefused, "too long"),
    "details in a list": (refuses("422 Unprocessable Entity", {"detail": [{"msg": "no role"}]}), ProviderRefused, "no role"),
    "too much": (
        refuses("429 Too Many Requests", {"error": {"message": "slow down"}}, Retry_After="7"),
        ProviderBusy,
        "slow down; try again in 7 s",
    ),
    "too much for today": (refuses("429 Too Many Requests", ""), ProviderBusy, "try again later"),
    "a failure": (refuses("500 Internal Server Error", {"error": "oops"}), ProviderBroken, "status 500: oops"),
    "a gateway's page": (refuses("502 Bad Gateway", PAGE, "text/html"), ProviderBroken, "status 502: a web page"),
    "another address": (
        refuses("308 Permanent Redirect", "", Location="https://elsewhere.test/v1"),
        ProviderRefused,
        "(https://elsewhere.test/v1)",
    ),
    "another protocol": (no_http, ProviderUnreachable, "closed the connection"),
    "no word": (hangs_up, ProviderUnreachable, "closed the connection"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_is_reported_with_profile_host_and_advice(provide: Provide, fault: str) -> None:
    answer, kind, said = FAULTS[fault]
    server = provide(answer)
    with pytest.raises(ProviderError) as raised:
        await ask(server.url)
    assert type(raised.value) is kind, raised.value
    message = str(raised.value)
    assert said in message
    assert message.startswith(f"The provider 'p' (127.0.0.1:{server.port}) ")
    assert len(message) < 700
    assert KEY not in message
    assert raised.value.__suppress_context__, "a chain of causes may hold what was not redacted"
    assert raised.value.retry_after == (7 if "in 7 s" in said else None)


async def test_required_key_is_reported(provide: Provide) -> None:
    server = provide(refuses("401 Unauthorized", ""))
    with pytest.raises(ProviderRefused, match="requires a key"):
        await ask(server.url, fields={"api_key": None})


async def test_unreachable_provider_is_reported() -> None:
    with pytest.raises(ProviderUnreachable, match=r"can't be reached \(.*\): check that it runs, and base_url"):
        await ask(f"http://127.0.0.1:{free_port()}/v1")


async def test_silence_times_out(provide: Provide) -> None:
    server = provide(lambda connection, request: connection.gone())
    with pytest.raises(ProviderUnreachable, match=r"no data for more than 0.2 s"):
        await ask(server.url, fields={"timeout": 0.2})


async def test_fault_after_the_text_is_ignored(provide: Provide) -> None:
    server = provide(sends(chunk("Hello"), chunk(None, "stop"), "{oops"))
    answer = await ask(server.url)
    assert answer["text"] == "Hello"
    assert answer["tokens_used"] is None


async def test_missing_usage_is_not_awaited(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    def lingers(connection: Connection, request: Request) -> None:
        connection.begin()
        connection.text("Hello")
        connection.gone(20)

    monkeypatch.setattr("openruntime_jupyter.ai.providers.remote.TAIL_SECONDS", 0.1)
    server = provide(lingers)
    assert (await ask(server.url))["text"] == "Hello"


async def test_endless_answer_is_stopped(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openruntime_jupyter.ai.providers.responses.LONGEST_ANSWER", 10)
    server = provide(says("Hello " * 3))
    with pytest.raises(ProviderBroken, match="more than 10 characters: give max_tokens"):
        await ask(server.url)


async def test_endless_body_is_stopped(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openruntime_jupyter.ai.providers.remote.LARGEST_BODY", 1000)
    server = provide(refuses("200 OK", "x" * 100_000))
    with pytest.raises(ProviderBroken, match="more than 1,000 bytes"):
        await ask(server.url)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_busy_provider_is_retried(provide: Provide, status: str) -> None:
    busy = refuses(status, {"error": "busy"}, Retry_After="0.05")
    server = provide(busy, busy, says("Hello"))
    assert (await ask(server.url, fields={"max_retries": 2}))["text"] == "Hello"
    assert len(server.requests) == 3
    server = provide(busy)
    with pytest.raises(ProviderError, match="busy"):
        await ask(server.url, fields={"max_retries": 1})
    assert len(server.requests) == 2
