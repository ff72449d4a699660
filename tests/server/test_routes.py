"""Checks of every route and method on a real Jupyter Server."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import httpx
import pytest
import websockets.sync.client
from jupyter_server.serverapp import ServerWebApplication
from tornado import web
from websockets.exceptions import InvalidStatus

from openruntime_jupyter.server.routes import ID, ROUTES, routes
from tests.server.conftest import error_of, refusal_of
from tests.support import Server

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
NO_SUCH_TASK = "task_0nosuch"

PATHS = sorted({path.replace(ID, NO_SUCH_TASK).removesuffix("?") for path, _ in ROUTES} | {"", "/nothing/here", "/tasks/", "/ws/x"})
"""Paths of all routes, and some unknown paths."""

EXISTING = [
    (verb, path.replace(ID, NO_SUCH_TASK).removesuffix("?"))
    for path, handler in ROUTES
    for verb in VERBS
    if getattr(handler, verb.lower()) is not getattr(web.RequestHandler, verb.lower())
]
"""Methods of all routes."""


def expected(verb: str, path: str) -> int:
    """Return the status of a request with the token, without a body, and with unknown ids."""
    if not any(re.fullmatch(pattern, path) for pattern, _ in ROUTES):
        return 404
    if (verb, path or "/") not in EXISTING:
        return 405
    if path == "/ws" or (verb in ("POST", "PUT", "PATCH") and not path.endswith(("/ready", "/restart"))):
        return 400
    return 404 if NO_SUCH_TASK in path else 200


def login_error(response: httpx.Response, path: str) -> str:
    """Return the message for a missing login: in the envelope, or below `/v1` in OpenAI's format."""
    if path.startswith("/v1/"):
        assert response.status_code == 401
        return str(response.json()["error"]["message"])
    return str(error_of(response, 403)["error"])


def asked(server: Server, verb: str, path: str, **headers: str) -> httpx.Response:
    return server.client.request(verb, server.url + path, headers=headers, timeout=30.0)


@pytest.mark.parametrize("path", PATHS)
def test_every_route_rejects_missing_login(jupyter: Server, path: str) -> None:
    for verb, headers in product(VERBS, ({}, {"Authorization": "token wrong"}, {"Authorization": "Basic dXNlcjpwYXNz"})):
        response = asked(jupyter, verb, path, **headers)
        if verb == "HEAD":
            assert response.status_code == (401 if path.startswith("/v1/") else 403)
        else:
            assert "token" in login_error(response, path)


@pytest.mark.parametrize("path", PATHS)
def test_every_route_accepts_token(jupyter: Server, path: str) -> None:
    for verb in VERBS:
        response, status = asked(jupyter, verb, path, **jupyter.headers), expected(verb, path)
        if verb == "HEAD" or (status == 200 and path in ("/docs", "/dashboard")):
            assert response.status_code == status
        elif status == 200:
            assert isinstance(response.json(), dict)
        elif path.startswith("/v1/"):
            assert (response.status_code, set(response.json())) == (status, {"error"})
        else:
            error_of(response, status)
        if status == 405:
            assert set(response.headers["Allow"].split(", ")) <= {*VERBS, "OPTIONS"}
            assert verb not in response.headers["Allow"]


@pytest.mark.parametrize("path", [path for path in PATHS if expected("GET", path) == 200])
def test_head_returns_get_headers_without_body(jupyter: Server, path: str) -> None:
    told, whole = (asked(jupyter, verb, path, **jupyter.headers) for verb in ("HEAD", "GET"))
    assert told.content == b""
    assert int(told.headers["Content-Length"]) > 0
    of_the_moment = {"date", "content-length", "etag", "set-cookie"}
    assert {**told.headers, **dict.fromkeys(of_the_moment)} == {**whole.headers, **dict.fromkeys(of_the_moment)}


@pytest.mark.parametrize(("verb", "path"), [*EXISTING, *((verb, "/nothing/here") for verb in VERBS)])
def test_authorizer_denial_applies_to_every_method(jupyter: Server, verb: str, path: str) -> None:
    assert asked(jupyter, verb, path, **jupyter.headers, **{"X-Deny": "*"}).status_code == 403


@pytest.mark.parametrize(("verb", "path"), EXISTING)
def test_methods_need_read_or_write_permission(jupyter: Server, verb: str, path: str) -> None:
    action, other = ("write", "read") if verb in WRITES and path != "/tasks/batch/results" else ("read", "write")
    assert asked(jupyter, verb, path, **jupyter.headers, **{"X-Deny": f"{action}:openruntime"}).status_code == 403
    assert asked(jupyter, verb, path, **jupyter.headers, **{"X-Deny": f"{other}:openruntime"}).status_code != 403


def test_denial_names_missing_permission(jupyter: Server) -> None:
    response = asked(jupyter, "GET", "/tasks", **jupyter.headers, **{"X-Deny": "*"})
    assert "read on resource: openruntime" in error_of(response, 403)["error"]


WRONG = {"Authorization": "token wrong"}


@pytest.mark.parametrize("headers", [{}, WRONG, {**WRONG, "Origin": "https://app.example"}], ids=["none", "wrong", "of another page"])
def test_websocket_without_login_is_closed_with_reason(jupyter: Server, headers: dict[str, str]) -> None:
    code, reason = refusal_of(jupyter.ws_url, headers)
    assert code == 4001
    assert reason.startswith("Not logged in")


def test_websocket_of_other_page_without_token_gets_no_close_code(jupyter: Server) -> None:
    with pytest.raises(InvalidStatus) as caught:
        websockets.sync.client.connect(jupyter.ws_url, additional_headers={"Origin": "https://app.example"}, proxy=None)
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize("denied", ["*", "read:openruntime"])
def test_websocket_without_permission_is_closed_with_reason(jupyter: Server, denied: str) -> None:
    code, reason = refusal_of(jupyter.ws_url, {**jupyter.headers, "X-Deny": denied})
    assert code == 4003
    assert "permission to read" in reason


@pytest.mark.parametrize("way", ["token", "Bearer", "query"])
def test_websocket_accepts_token_in_header_and_query(jupyter: Server, way: str) -> None:
    url = jupyter.ws_url + (f"?token={jupyter.token}" if way == "query" else "")
    headers = {} if way == "query" else {"Authorization": f"{way} {jupyter.token}"}
    with websockets.sync.client.connect(url, additional_headers=headers, proxy=None) as socket:
        assert '"connected"' in str(socket.recv(timeout=10))


def test_every_handler_method_requires_authentication() -> None:
    check: Any = ServerWebApplication._check_handler_auth
    for path, handler in ROUTES:
        assert check(None, path, handler) == []


def test_other_paths_are_left_to_jupyter(jupyter: Server) -> None:
    assert asked(jupyter, "GET", "x", **jupyter.headers).status_code == 404
    told = jupyter.client.get(f"{jupyter.root}/api/status", headers=jupyter.headers).json()
    assert "last_activity" in told


def test_route_table_ends_with_catch_all() -> None:
    for mount in ("/openruntime", ""):
        *_, (pattern, _) = routes(mount)
        assert re.fullmatch(pattern, f"{mount}/anything/at/all")
