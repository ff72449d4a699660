"""Servers shared by most of these tests, started once per session."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from jupyter_server.serverapp import ServerApp
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from openruntime_jupyter import __version__
from openruntime_jupyter.schemas.endpoints import VERSION_HEADER
from openruntime_jupyter.schemas.problems import CODES
from openruntime_jupyter.server.app import OpenRuntimeApp
from tests.support import JUPYTER, STANDALONE, TOKEN, Server, running_server

BASE_URL = "/user/x/"

AUTHORIZER = '''
from jupyter_server.auth.authorizer import Authorizer


class HeaderAuthorizer(Authorizer):
    """Deny the permissions in the header, for example `X-Deny: write:openruntime`."""

    def is_authorized(self, handler, user, action, resource):
        denied = handler.request.headers.get("X-Deny", "").split()
        return f"{action}:{resource}" not in denied and "*" not in denied
'''


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a Jupyter Server below /user/x/ with an authorizer that denies the permissions in the header X-Deny."""
    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "lib").mkdir()
    (folder / "lib" / "denying.py").write_text(AUTHORIZER)
    config = {"ServerApp": {"authorizer_class": "denying.HeaderAuthorizer"}}
    with running_server(folder, JUPYTER, base_url=BASE_URL, config=config, paths=[folder / "lib"]) as server:
        yield server


@pytest.fixture(scope="session")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start `jupyter openruntime`; requests have its token."""
    with running_server(tmp_path_factory.mktemp("standalone"), STANDALONE, token=TOKEN) as server:
        yield server


def error_of(response: httpx.Response, status: int) -> Any:
    """Check status and shape of an error response, and return its envelope."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers[VERSION_HEADER] == __version__
    error = response.json()
    assert set(error) == {"status", "data", "error", "timestamp"}
    assert error["status"] == "error"
    assert error["data"]["code"] in CODES
    assert error["error"]
    assert error["timestamp"].endswith("Z")
    assert "Traceback" not in response.text
    return error


def refusal_of(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return code and reason with which the server closes a WebSocket before any message."""
    with connect(url, additional_headers=headers, proxy=None) as socket, pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=10)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


def raw_request(server: Server, verb: str, path: str, *headers: str, token: str = TOKEN) -> socket.socket:
    """Open a connection, send the head of a request, and return the connection."""
    place = urlsplit(server.url)
    connection = socket.create_connection((str(place.hostname), place.port or 80), timeout=60)
    lines = [f"{verb} {place.path}{path} HTTP/1.1", f"Host: {place.netloc}", f"Authorization: token {token}", *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


@pytest.fixture
def jp_server_config() -> dict[str, Any]:
    """Return the configuration of the server in this process."""
    return {"ServerApp": {"jpserver_extensions": {"openruntime_jupyter": True}}}


def prepared(server: ServerApp, data_dir: Path) -> OpenRuntimeApp:
    """Return the extension in this process."""
    (app,) = server.extension_manager.extension_apps["openruntime_jupyter"]
    assert isinstance(app, OpenRuntimeApp)
    app.data_dir = str(data_dir)
    return app


async def started(server: ServerApp, data_dir: Path) -> OpenRuntimeApp:
    """Return the started extension in this process."""
    app = prepared(server, data_dir)
    await server.extension_manager.start_all_extensions()
    await app.ready()
    return app
