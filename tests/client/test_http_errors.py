"""Translation of httpx exceptions, and detection of responses from other programs."""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from openruntime_jupyter.client.transport.http import BAD_URL, MESSAGES, TRANSLATED, HttpBackend, from_answer, translate
from openruntime_jupyter.errors import (
    InvalidRequest,
    NotAllowed,
    NotConnected,
    OpenRuntimeError,
    QueueFull,
    RateLimited,
    TaskConflict,
    TaskNotFound,
    Unavailable,
    UnknownDevice,
    UnknownOperation,
)
from openruntime_jupyter.schemas.endpoints import GET_HEALTH, LIST_DEVICES
from tests.support import free_port

EVERY = sorted(
    (kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, Exception)),
    key=lambda kind: kind.__name__,
)


def made(kind: type[Exception]) -> Exception:
    """Create an exception of httpx with suitable arguments."""
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("no", request=httpx.Request("GET", "http://x"), response=httpx.Response(500))
    return kind() if "message" not in inspect.signature(kind).parameters else kind("no")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_exception_of_httpx_was_decided_on(kind: type[Exception]) -> None:
    assert issubclass(kind, TRANSLATED), "it would come through untranslated"
    assert kind in MESSAGES or kind in BAD_URL, "a new one: say what it means to the user"
    told = translate(made(kind), "http://127.0.0.1:1")
    assert isinstance(told, InvalidRequest if kind in BAD_URL else NotConnected)
    assert "http://127.0.0.1:1" in str(told)
    assert "{" not in str(told)


def test_nothing_is_decided_on_that_httpx_no_longer_has() -> None:
    assert {*MESSAGES, *BAD_URL} - {UnicodeError} <= set(EVERY)


def test_where_nothing_listens_the_error_says_what_to_do() -> None:
    with pytest.raises(NotConnected, match="jupyter openruntime"):
        HttpBackend(f"http://127.0.0.1:{free_port()}").call(GET_HEALTH)


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Run a raw socket that handles each connection with `answer`; yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def says(text: str) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(text.encode())

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(""), "Lost the connection"),
        (says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "Lost the connection"),
        (says("220 mail.example.org ESMTP\r\n"), "Lost the connection"),
        (says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"), "does not respond like OpenRuntime"),
        (says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<p/>"), "text/html"),
        (says("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), "302"),
        (says("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad"), "502"),
        (
            says("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad"),
            "does not respond like OpenRuntime",
        ),
    ],
    ids=["silence", "cut off", "not HTTP", "other JSON", "a page", "a redirect", "a gateway", "a broken encoding"],
)
def test_a_stranger_at_the_port_is_told_as_such(answer: Callable[[socket.socket], object], said: str) -> None:
    with listening(answer) as url, pytest.raises(NotConnected, match=said):
        HttpBackend(url, patience=5).call(GET_HEALTH)


REFUSAL = 'HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"error": "no"}'
EMPTY = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"devices": []}'


@pytest.mark.parametrize("learnt", [False, True], ids=["by the refusal", "by another thread concurrently"])
def test_a_server_that_was_started_anew_is_asked_with_its_new_token_though_a_kept_connection_was_lost_too(learnt: bool) -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(65_536))
        if len(asked) == 2 and learnt:
            backend.renewed_token()  # like the event thread when it connects
        if len(asked) > 1:
            connection.sendall((EMPTY if b"the second" in asked[-1] else REFUSAL).encode())

    with listening(answer) as url:
        backend = HttpBackend(url, "the first", patience=5, renew=lambda: "the second" if len(asked) > 1 else None)
        assert backend.call(LIST_DEVICES) == []
    assert [b"the second" in each for each in asked] == [False, False, True]


def test_a_token_that_is_refused_is_sent_once_where_there_is_no_other() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(65_536))
        connection.sendall(REFUSAL.encode())

    with listening(answer) as url, pytest.raises(NotAllowed):
        HttpBackend(url, "the first", patience=5, renew=lambda: "the first").call(LIST_DEVICES)
    assert len(asked) == 1


def test_a_server_that_never_answers_is_given_up() -> None:
    release = threading.Event()
    with listening(lambda _: release.wait(10)) as url:
        try:
            with pytest.raises(NotConnected, match="Timeout waiting for"):
                HttpBackend(url, patience=0.3).call(GET_HEALTH)
        finally:
            release.set()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, None, NotAllowed),
        (404, "task_not_found", TaskNotFound),
        (404, "route_not_found", NotConnected),
        (409, "task_conflict", TaskConflict),
        (429, None, RateLimited),
        (503, "queue_full", QueueFull),
        (503, None, Unavailable),
        (500, "internal_error", OpenRuntimeError),
    ],
)
def test_a_refusal_becomes_the_error_that_the_runtime_raised(status: int, code: str | None, kind: type[OpenRuntimeError]) -> None:
    data = {"code": code, "details": []} if code else None
    body = {"status": "error", "error": "do this", "data": data}
    response = httpx.Response(status, json=body, request=httpx.Request("GET", "http://x/tasks"))
    told = from_answer("http://x", response)
    assert isinstance(told, kind)
    assert "do this" in str(told)


@pytest.mark.parametrize(
    ("field", "code", "kind"),
    [
        ("operation", "unknown_operation", UnknownOperation),
        ("device_preference", "unknown_device", UnknownDevice),
        ("priority", "invalid_request", InvalidRequest),
    ],
)
def test_a_wrong_value_keeps_its_details(field: str, code: str, kind: type[InvalidRequest]) -> None:
    body = {"error": "no", "data": {"code": code, "details": [{"field": field, "problem": "is wrong"}]}}
    told = from_answer("http://x", httpx.Response(422, json=body, request=httpx.Request("POST", "http://x/tasks")))
    assert type(told) is kind
    assert told.details == [{"field": field, "problem": "is wrong"}]


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("", None), ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0)])
def test_how_long_to_wait_comes_from_the_server(header: str, seconds: float | None) -> None:
    response = httpx.Response(503, json={"error": "full"}, headers={"Retry-After": header}, request=httpx.Request("POST", "http://x/tasks"))
    assert from_answer("http://x", response).retry_after == seconds


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://[::1", "http://x:99999999", "http://xn--a"])
def test_what_is_no_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InvalidRequest, match="url"):
        HttpBackend(url)


def test_a_host_that_no_domain_may_be_called_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="url"):
        HttpBackend(f"http://{'a' * 70}.example").call(GET_HEALTH)


def test_a_token_that_no_header_can_carry_is_refused_without_telling_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        HttpBackend("http://127.0.0.1", "secret\r\nX: y")
    assert "secret" not in str(caught.value)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    body = '{"devices": []}'
    with listening(says(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}")) as url:
        assert HttpBackend(url).call(LIST_DEVICES) == []
