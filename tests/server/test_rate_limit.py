from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders
from traitlets import TraitError
from traitlets.config import Config
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from openruntime_jupyter.errors import RateLimited
from openruntime_jupyter.server.app import OpenRuntimeApp
from openruntime_jupyter.server.auth.rate_limit import MAX_CLIENTS, Limits, LimitsTraits
from tests.server.conftest import error_of, raw_request
from tests.support import JUPYTER, STANDALONE, TOKEN, Server, running_server, wait_until

FIGURES = {"max_requests_per_minute": 1_000, "max_connections": 100, "max_websockets": 10}


def test_users_are_counted_separately_without_rejected_requests() -> None:
    limits = Limits(2, 0, 0)
    for _ in range(2):
        limits.enter("user one", False)()
    for _ in range(5):
        with pytest.raises(RateLimited, match="max_requests_per_minute") as refused:
            limits.enter("user one", False)
    wait = refused.value.retry_after
    assert wait in range(1, 61)
    limits.enter("user two", False)()


def test_client_is_admitted_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, now = Limits(1, 0, 0), time.time()
    limits.enter("me", False)()
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: now + 59))
    with pytest.raises(RateLimited):
        limits.enter("me", False)
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: now + 62))
    limits.enter("me", False)()


def test_open_connections_count_until_closed() -> None:
    limits = Limits(0, 3, 2)
    ends = [limits.enter("me", True), limits.enter("me", True)]
    with pytest.raises(RateLimited, match="max_websockets"):
        limits.enter("me", True)
    ends.append(limits.enter("me", False))
    with pytest.raises(RateLimited, match="max_connections"):
        limits.enter("me", False)
    limits.enter("you", True)()
    ends.pop()()
    limits.enter("me", False)()
    for end in ends:
        end()
    assert not limits._open


def test_number_of_tracked_clients_is_limited() -> None:
    limits = Limits(1, 1, 1)
    for number in range(MAX_CLIENTS + 500):
        limits.enter(f"10.{number}", False)()
    assert limits._rate is not None
    assert len(limits._rate._storage.events) == MAX_CLIENTS
    with pytest.raises(RateLimited):
        limits.enter(f"10.{MAX_CLIENTS + 499}", False)
    assert not limits._open


@pytest.mark.parametrize("message", ["requests", "connections", "websockets"])
def test_rate_limit_message_fits_into_close_frame(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    bounds: dict[str, Any] = {name: int(name == message) * 1_000_000 for name in ("requests", "connections", "websockets")}
    limits = Limits(**bounds)
    limits._open["me", True] = 1_000_000
    if limits._rate is not None:
        monkeypatch.setattr(limits._rate, "take", lambda _: 60.0)
    with pytest.raises(RateLimited) as refused:
        limits.enter("me", True)
    assert len(str(refused.value).encode()) <= 123


def asked(peer: Any, forwarded: list[str] | None = None) -> Any:
    headers = HTTPHeaders()
    for each in forwarded or []:
        headers.add("X-Forwarded-For", each)
    return SimpleNamespace(headers=headers, connection=SimpleNamespace(context=SimpleNamespace(address=peer)))


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        (("192.0.2.9", 1), ["198.51.100.1"], "192.0.2.9"),
        (("::ffff:10.0.0.1", 1, 0, 0), ["198.51.100.1"], "198.51.100.1"),
        (("10.0.0.1", 1), ["203.0.113.5", "198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        (("10.0.0.1", 1), ["10.0.0.7"], "10.0.0.7"),
        (("10.0.0.1", 1), ["198.51.100.1, nonsense"], "10.0.0.1"),
        (("10.0.0.1", 1), ["198.51.100.1:51234"], "198.51.100.1"),
        (("10.0.0.1", 1), ["203.0.113.5, [2001:db8::1:2:3:4]:443, 10.2.3.4:80"], "2001:db8::/64"),
        (("10.0.0.1", 1), ["[", ":80"], "10.0.0.1"),
        (("fe80::1%eth0", 1, 0, 2), [], "fe80::/64"),
        ("", [], "a local socket"),
    ],
)
def test_forwarded_address_needs_trusted_proxy(peer: Any, forwarded: list[str], counted: str) -> None:
    assert Limits(1, 0, 0, ["10.0.0.0/8"]).client(asked(peer, forwarded), None) == counted


def test_user_is_counted_independent_of_address() -> None:
    limits = Limits(1, 0, 0)
    assert limits.client(asked(("192.0.2.9", 1)), "ada") == limits.client(asked(("192.0.2.10", 1)), "ada") != "ada"


def test_limits_are_disabled_by_default() -> None:
    names = tuple(FIGURES)
    assert not OpenRuntimeApp().limits_of().on
    made = OpenRuntimeApp(config=Config({"OpenRuntimeApp": {"production": True}}))
    assert {name: getattr(made, name) for name in names} == FIGURES
    made = OpenRuntimeApp(config=Config({"OpenRuntimeApp": {"production": True, "max_connections": 0, "max_websockets": 3}}))
    assert [getattr(made, name) for name in names] == [1_000, 0, 3]


def test_invalid_proxy_address_is_rejected() -> None:
    with pytest.raises(TraitError, match=r"trusted_proxies.*10\.0\.0\.0/8"):
        LimitsTraits(trusted_proxies=["proxy.example"])


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("limited"), JUPYTER, config={"OpenRuntimeApp": request.param}) as server:
        yield server


few_connections = pytest.mark.parametrize("limited", [{"max_connections": 2, "max_websockets": 1}], indirect=True)


@contextlib.contextmanager
def opened(server: Server) -> Iterator[Any]:
    with connect(server.ws_url, additional_headers=server.headers, proxy=None) as connection:
        yield connection


def closed_by(server: Server) -> ConnectionClosed:
    with opened(server) as connection, pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=10)
    return closed.value


def half_a_request(server: Server) -> socket.socket | None:
    """Open a connection whose request uses the last slot. Return None if another request used it at the time."""
    connection = raw_request(server, "POST", "/tasks", "Content-Length: 100")
    connection.sendall(b"{")
    if any(server.request("GET", "/metrics").status_code == 429 for _ in range(20)):
        return connection
    connection.close()
    return None


@pytest.mark.parametrize("limited", [{"max_requests_per_minute": 40}], indirect=True)
def test_requests_above_limit_get_429(limited: Server) -> None:
    wait_until(lambda: limited.request("GET", "/metrics").status_code == 429, 20, "the limit")
    refused = limited.request("POST", "/tasks", json={"operation": "matrix_multiply"})
    told = error_of(refused, 429)
    assert "40 requests" in told["error"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert error_of(limited.request("GET", "/nowhere"), 429)
    assert error_of(limited.request("GET", "/ws"), 429)
    of_openai = limited.request("GET", "/v1/models")
    assert (of_openai.status_code, of_openai.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(of_openai.headers["Retry-After"]) <= 61
    closed = closed_by(limited)
    assert closed.rcvd is not None
    assert (closed.rcvd.code, "40 requests" in closed.rcvd.reason) == (4029, True)
    # The limits do not apply to Jupyter's routes.
    assert limited.client.get(f"{limited.root}/api/status", headers=limited.headers).status_code == 200
    # Clients without a login are counted by address, separately from the user.
    stranger = {"Authorization": "token wrong"}
    assert error_of(limited.request("GET", "/metrics", headers=stranger), 403)
    wait_until(lambda: limited.request("GET", "/metrics", headers=stranger).status_code == 429, 20, "the limit of who guesses")


@few_connections
def test_open_websockets_count_until_closed(limited: Server) -> None:
    with opened(limited) as first:
        first.recv(timeout=10)
        closed = closed_by(limited)
        assert closed.rcvd is not None
        assert (closed.rcvd.code, "max_websockets" in closed.rcvd.reason) == (4029, True)
        for _ in range(5):
            assert limited.get("/metrics")
    with opened(limited) as again:
        assert '"connected"' in wait_until(lambda: again.recv(timeout=10))


@few_connections
def test_active_request_counts_until_disconnect(limited: Server) -> None:
    with opened(limited) as connection:
        connection.recv(timeout=10)
        # After half a body the client disconnects, which frees the slot without a response.
        with wait_until(lambda: half_a_request(limited), 20, "the active request"):
            assert "max_connections" in error_of(limited.request("GET", "/metrics"), 429)["error"]
            assert "max_connections" in error_of(limited.request("POST", "/tasks", json={"operation": "compute"}), 429)["error"]
        wait_until(lambda: limited.request("GET", "/metrics").status_code == 200, 10, "the place of who left")


def test_production_flag_enables_limits(tmp_path: Any) -> None:
    with running_server(tmp_path, STANDALONE, "--production", token=TOKEN) as server, contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(opened(server)).recv(timeout=10)
        closed = closed_by(server)
        assert closed.rcvd is not None
        assert closed.rcvd.code == 4029
