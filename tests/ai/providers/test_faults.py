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


def ok(body: Any, kind: str = "application/json") -> Answer:
    return refuses("200 OK", body, kind)


NOT_FOUND, UNAUTHORIZED, BUSY = "404 Not Found", "401 Unauthorized", "429 Too Many Requests"
REDIRECT = "308 Permanent Redirect"
TOOL_CALL = {"index": 0, "function": {"name": "f", "arguments": "{}"}}

FAULTS: dict[type[ProviderError], dict[str, tuple[Answer, str]]] = {
    ProviderBroken: {
        "a web page with status 200": (ok(PAGE, "text/html"), "a web page, 'Welcome to nginx!': check the end of base_url"),
        "a web page as a stream": (ok(PAGE, "text/event-stream"), "sent no response: check that base_url"),
        "an empty object": (ok({}), "no choices"),
        "an empty body": (ok(""), "invalid JSON (nothing)"),
        "no JSON": (ok("{oops"), "invalid JSON ({oops)"),
        "an error with status 200": (ok({"error": "model is asleep"}), "model is asleep"),
        "an unknown path with status 200": (
            ok({"error": "Unexpected endpoint"}),
            "Unexpected endpoint): check that base_url is that of an",
        ),
        "choices that are null": (ok({"model": "m", "choices": None}), "invalid completion"),
        "choices that are not a list": (ok({"choices": "many"}), "invalid completion"),
        "invalid choices": (ok({"choices": [None, 5, "x"]}), "sent no response"),
        "a message without a finish": (ok({"choices": [{"message": {"content": "Hi"}}]}), "ended the response early, after 2 characters"),
        "empty objects as chunks": (sends({}, {}, "[DONE]"), "no choices"),
        "texts as chunks": (sends('"overloaded"', "[DONE]"), "overloaded"),
        "usage alone": (sends(usage(3, 0), "[DONE]"), "sent no response"),
        "nothing at all": (sends(), "sent no response"),
        "a stream that is cut": (sends(chunk("Hel"), chunk("lo")), "early, after 5 characters: try again"),
        "a stream that is cut silently": (sends(chunk("Hel"), chunk("lo"), version="1.0"), "after 5 characters"),
        "a done stream without a finish": (sends(chunk("Hel"), "[DONE]"), "after 3 characters"),
        "an invalid JSON line": (sends(chunk("Hel"), '{"choices": [{'), "invalid JSON"),
        "bytes that are not text": (ok("data: \udcff\n\n", "text/event-stream"), "not text"),
        "an error in the stream": (sends(chunk("Hel"), {"error": {"message": "out of memory"}}), "during the response: out of memory"),
        "an error text in the stream": (sends({"error": "out of memory"}), "during the response: out of memory"),
        "an error as finish": (sends(chunk("Hel"), chunk(None, "error")), "with an error, after 3 characters"),
        "reasoning alone": (sends(chunk(None, reasoning_content="Hm"), chunk(None, "stop")), "reasoning but no text"),
        "reasoning alone in the text": (sends(chunk("<think>Hm</think>"), chunk(None, "stop")), "reasoning but no text"),
        "reasoning to the end of the text": (sends(chunk("<think>Hm"), chunk(None, "length")), "raise max_tokens"),
        "reasoning to the end": (sends(chunk(None, reasoning="Hm"), chunk(None, "length")), "raise max_tokens"),
        "tool calls alone": (sends(chunk(None, tool_calls=[TOOL_CALL]), chunk(None, "tool_calls")), "called the tool 'f'"),
        "a failure": (refuses("500 Internal Server Error", {"error": "oops"}), "status 500: oops"),
        "a gateway's page": (refuses("502 Bad Gateway", PAGE, "text/html"), "status 502: a web page"),
    },
    ProviderRefused: {
        "a filter": (sends(chunk("Bad"), chunk(None, "content_filter")), "content filter, after 3 characters: rephrase"),
        "a refusal": (sends(chunk(None, refusal="I can't."), chunk(None, "stop")), "declined to respond: I can't"),
        "an error that is a text": (refuses("400 Bad Request", {"error": "temperature is too hot"}), "temperature is too hot"),
        "a text for an error": (refuses("400 Bad Request", "no such thing", "text/plain"), "no such thing"),
        "a wrong key": (refuses(UNAUTHORIZED, {"error": {"message": "wrong"}}), "the key of env:THE_KEY: wrong; set a valid key"),
        "no permission": (refuses("403 Forbidden", {"message": "not you"}), "denied access: not you"),
        "an unknown model": (refuses(NOT_FOUND, {"error": "no tiny here"}), "no tiny here; check model and the end of base_url"),
        "an unknown address": (refuses(NOT_FOUND, PAGE, "text/html"), "a web page, 'Welcome to nginx!'; check model"),
        "another method": (refuses("405 Method Not Allowed", ""), "no chat completions"),
        "a conflict": (refuses("409 Conflict", {"detail": "busy"}), "status 409: busy"),
        "a long prompt": (refuses("413 Payload Too Large", ""), "too long"),
        "a parameter": (refuses("400 Bad Request", {"error": {"message": "only 1", "param": "seed"}}), "only 1; change or omit seed in"),
        "details in a list": (refuses("422 Unprocessable Entity", {"detail": [{"msg": "no role"}]}), "no role"),
        "a redirect": (refuses(REDIRECT, "", Location="https://elsewhere.test/v1"), "(https://elsewhere.test/v1)"),
    },
    ProviderBusy: {
        "no credit": (refuses("402 Payment Required", {"error": {"message": "empty"}}), "payment: empty"),
        "rate limit": (refuses(BUSY, {"error": {"message": "slow down"}}, Retry_After="7"), "slow down; try again in 7 s"),
        "rate limit without a time": (refuses(BUSY, ""), "try again later"),
    },
    ProviderUnreachable: {
        "a stream that is cut within a chunk": (cut_within_a_chunk, "closed the connection"),
        "a time-out": (refuses("408 Request Timeout", ""), "Request Timeout; try again"),
        "another protocol": (lambda connection, request: connection.send("SSH-2.0-OpenSSH_9.6\r\n"), "closed the connection"),
        "a closed connection": (lambda connection, request: None, "closed the connection"),
    },
}


@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults])
async def test_fault_is_reported_with_profile_host_and_advice(provide: Provide, kind: type[ProviderError], fault: str) -> None:
    answer, text = FAULTS[kind][fault]
    server = provide(answer)
    with pytest.raises(ProviderError) as raised:
        await ask(server.url)
    assert type(raised.value) is kind, raised.value
    message = str(raised.value)
    assert text in message
    assert message.startswith(f"The provider 'p' (127.0.0.1:{server.port}) ")
    assert len(message) < 700
    assert KEY not in message
    assert raised.value.__suppress_context__, "a chain of causes may hold what was not redacted"
    assert raised.value.retry_after == (7 if "in 7 s" in text else None)


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
