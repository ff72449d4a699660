"""Clients that send no end, too slowly, or over too many connections."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import STANDALONE, TOKEN, Server, running_server, wait_until

IMPATIENT = """
import sys

if any("openruntime_jupyter.cli" in argument for argument in sys.orig_argv):
    from openruntime_jupyter.server import services

    services.STALLED_SECONDS = 1.0

    from openruntime_jupyter.server.http import base

    base.MOST_HELD = 0
"""
LIMIT = 200_000
"""`max_parameters_bytes`. All bodies together may then have twice as much, and some more for the other fields."""
JSON = "Content-Type: application/json"
ENDLESS = b'{"operation": "python", "parameters": {"code": "'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a stand-alone server that waits for one second instead of two minutes."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "lib").mkdir()
    (folder / "lib" / "sitecustomize.py").write_text(IMPATIENT)
    config = {"OpenRuntimeApp": {"max_parameters_bytes": LIMIT}}
    with running_server(folder, STANDALONE, token=TOKEN, config=config, paths=[folder / "lib"]) as server:
        yield server


def connected(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=30.0)
    connection.settimeout(30.0)
    return connection


def request(server: Server, *headers: str, path: str = "/tasks") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: token {TOKEN}", JSON, *headers, "", ""]
    return "\r\n".join(lines).encode()


def rest_of(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            received += piece
    return received


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/ai/tasks", "/unknown", "/api/shutdown"])
def test_body_that_stops_is_given_up(server: Server, path: str) -> None:
    with connected(server) as connection:
        connection.sendall(request(server, "Content-Length: 1000", path=path) + ENDLESS)
        answer = rest_of(connection)
    assert answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 404 "))
    assert b'"status":"error"' in answer


@pytest.mark.parametrize("header", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_body_that_trickles_is_given_up(server: Server, header: str) -> None:
    begun = time.monotonic()
    with connected(server) as connection:
        connection.sendall(request(server, header))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 20.0:
                connection.sendall(b"1\r\nx\r\n" if "chunked" in header else b"x")
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(12) == b"HTTP/1.1 408":
                        return
    pytest.fail(f"the connection was open for {time.monotonic() - begun:.0f} s, without the answer 408")


def test_headers_that_never_end_are_given_up(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Header: ")
        assert rest_of(connection) == b""


def test_unfinished_bodies_hold_bounded_memory(server: Server) -> None:
    part = ENDLESS + b"x" * (LIMIT - 10_000)
    whole = json.dumps({"operation": "matrix_multiply", "parameters": {"size": 8}, "name": "y" * 180_000})
    with contextlib.ExitStack() as stack:

        def refused_beside_others() -> httpx.Response | None:
            for _ in range(3):
                connection = stack.enter_context(connected(server))
                connection.sendall(request(server, f"Content-Length: {LIMIT}") + part)
            return refusal(server, whole)

        refused = wait_until(refused_beside_others, 20.0, "a refusal")
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.submit("matrix_multiply", {"size": 8})["status"] == "completed", "small bodies have room"
    wait_until(lambda: refusal(server, whole) is None, 20.0, "room after the end of the others")


def refusal(server: Server, body: str) -> httpx.Response | None:
    response = server.request("POST", "/tasks", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (422, 503), response.text  # the name is too long for a task
    return response if response.status_code == 503 else None


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process can only be set on Linux")
def test_exhausted_descriptors_are_reported_once_and_freed(server: Server, tmp_path: Path) -> None:
    process = psutil.Process(server.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    begun = server.log.stat().st_size
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 10, before[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(connected(server)).sendall(b"GET / HTTP/1.1\r\n")
            wait_until(lambda: "ulimit -n" in server.tail(), 20.0, "a report")
            wait_until(lambda: server.client.get(f"{server.url}/", headers=server.headers, timeout=60.0).is_success, 60.0, "a response")
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)
    assert server.log.stat().st_size - begun < 20_000
    assert server.tail().count("ulimit -n") == 1


def test_absolute_target_is_served_like_its_path(server: Server) -> None:
    url = httpx.URL(server.url)
    for target, status in (
        (f"{server.url}/health", 200),
        (f"{server.url}/unknown", 404),
        (f"http://elsewhere.example:{url.port}/health", 403),
    ):
        with connected(server) as connection:
            headers = f"Host: 127.0.0.1:{url.port}\r\nAuthorization: token {TOKEN}\r\nConnection: close\r\n\r\n"
            connection.sendall(f"GET {target} HTTP/1.1\r\n{headers}".encode())
            head, _, body = rest_of(connection).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (target, head)
        assert "status" in json.loads(body)
