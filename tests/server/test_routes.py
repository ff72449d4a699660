"""Checks of every route and method on a real Jupyter Server."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
import websockets.sync.client
from jupyter_server.serverapp import ServerWebApplication
from tornado import web
from websockets.exceptions import InvalidStatus

from openruntime_jupyter.server.routes import ID, ROUTES, routes
from tests.server.conftest import error_of
from tests.support import Server

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
WRITES = ("POST", "PUT", "PATCH", "DELETE")
NO_SUCH_TASK = "task_0nosuch"

PATHS = sorted({path.replace(ID, NO_SUCH_TASK).removesuffix("?") for path, _ in ROUTES} | {"", "/nothing/here", "/tasks/", "/ws/x"})
"""Paths of all routes, and some unknown paths."""

EXPECTED = {
    "GET /": 200,
    "GET ": 200,
    "GET /health": 200,
    "GET /metrics": 200,
    "GET /metrics/history": 200,
    "GET /devices": 200,
    "GET /operations": 200,
    "GET /workers": 200,
    "GET /tasks": 200,
    "GET /tasks/enhanced": 200,
    "POST /tasks": 400,
    "POST /tasks/output": 400,
    "POST /tasks/batch": 400,
    "POST /tasks/batch/results": 400,
    f"GET /tasks/{NO_SUCH_TASK}": 404,
    f"PATCH /tasks/{NO_SUCH_TASK}": 400,
    f"DELETE /tasks/{NO_SUCH_TASK}": 404,
    f"GET /tasks/{NO_SUCH_TASK}/output": 404,
    f"GET /tasks/{NO_SUCH_TASK}/payload": 404,
    "GET /arrays": 200,
    "POST /arrays": 400,
    f"GET /arrays/{NO_SUCH_TASK}": 404,
    f"PUT /arrays/{NO_SUCH_TASK}": 400,
    f"DELETE /arrays/{NO_SUCH_TASK}": 404,
    f"POST /arrays/{NO_SUCH_TASK}/ready": 404,
    "POST /ai/insights": 400,
    "GET /ai/agents": 200,
    "GET /ai/workflows": 200,
    "POST /ai/tasks": 400,
    f"GET /tasks/{NO_SUCH_TASK}/tokens": 404,
    "GET /ai/conversations": 200,
    f"GET /ai/conversations/{NO_SUCH_TASK}": 404,
    f"DELETE /ai/conversations/{NO_SUCH_TASK}": 404,
    "GET /sessions": 200,
    f"DELETE /sessions/{NO_SUCH_TASK}": 404,
    f"POST /sessions/{NO_SUCH_TASK}/restart": 404,
    "GET /models": 200,
    f"DELETE /models/{NO_SUCH_TASK}": 404,
    "GET /ws": 400,
    "GET /openapi.json": 200,
    "GET /docs": 200,
    # PATCH and DELETE treat this as an unknown task id.
    "DELETE /tasks/enhanced": 405,
}
"""Expected status with the token and without a body."""


def asked(server: Server, verb: str, path: str, **headers: str) -> httpx.Response:
    return server.client.request(verb, server.url + path, headers=headers, timeout=30.0)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", PATHS)
def test_every_route_rejects_missing_login(jupyter: Server, verb: str, path: str) -> None:
    for headers in ({}, {"Authorization": "token wrong"}, {"Authorization": "Basic dXNlcjpwYXNz"}):
        response = asked(jupyter, verb, path, **headers)
        if verb == "HEAD":
            assert response.status_code == 403
        else:
            assert "token" in error_of(response, 403)["error"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", PATHS)
def test_every_route_accepts_token(jupyter: Server, verb: str, path: str) -> None:
    response = asked(jupyter, verb, path, **jupyter.headers)
    known = any(re.fullmatch(pattern, path) for pattern, _ in ROUTES)
    asked_like = "GET" if verb == "HEAD" and path != "/ws" else verb
    expected = EXPECTED.get(f"{asked_like} {path}", 405 if known else 404)
    if verb == "HEAD":
        assert response.status_code == expected
    elif expected == 200:
        assert response.status_code == 200
        assert path == "/docs" or isinstance(response.json(), dict)
    else:
        error_of(response, expected)
    if expected == 405:
        assert set(response.headers["Allow"].split(", ")) <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        assert verb not in response.headers["Allow"]


@pytest.mark.parametrize("path", [path for path in PATHS if EXPECTED.get(f"GET {path}") == 200])
def test_head_returns_get_headers_without_body(jupyter: Server, path: str) -> None:
    told, whole = (asked(jupyter, verb, path, **jupyter.headers) for verb in ("HEAD", "GET"))
    assert told.content == b""
    assert int(told.headers["Content-Length"]) > 0
    of_the_moment = {"date", "content-length", "etag", "set-cookie"}
    assert {**told.headers, **dict.fromkeys(of_the_moment)} == {**whole.headers, **dict.fromkeys(of_the_moment)}


EXISTING = [
    (verb, path.replace(ID, NO_SUCH_TASK).removesuffix("?"))
    for path, handler in ROUTES
    for verb in VERBS
    if getattr(handler, verb.lower()) is not getattr(web.RequestHandler, verb.lower())
]
"""Methods of all routes."""


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


@pytest.mark.parametrize("headers", [{}, {"Authorization": "token wrong"}], ids=["none", "wrong"])
def test_websocket_rejects_missing_login_before_upgrade(jupyter: Server, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as caught:
        websockets.sync.client.connect(jupyter.ws_url, additional_headers=headers, proxy=None)
    assert caught.value.response.status_code == 403
    assert b'"status":"error"' in (caught.value.response.body or b"")


def test_websocket_applies_authorizer_before_upgrade(jupyter: Server) -> None:
    for denied in ("*", "read:openruntime"):
        with pytest.raises(InvalidStatus) as caught:
            websockets.sync.client.connect(jupyter.ws_url, additional_headers={**jupyter.headers, "X-Deny": denied}, proxy=None)
        assert caught.value.response.status_code == 403


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
