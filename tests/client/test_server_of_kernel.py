"""Kernels of several real servers, started through their APIs, each find their own server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_server.auth.security import passwd

from tests.support import Home, Server, ready, running_server

PASSWORD = "the password of this test"
SECONDS = 120.0
WHERE = """
import openruntime_jupyter
client = openruntime_jupyter.connect()
print(client.where, client.origin, client.call(lambda: 6 * 7))
"""
INHERITED = """
import json, os
print(json.dumps({name: value for name, value in os.environ.items() if name.startswith(("OPENRUNTIME_", "JPY_"))}))
"""


@contextmanager
def logged_in(server: Server, password: str | None = None) -> Iterator[httpx.Client]:
    """Return a session for Jupyter's API, authorized by token or password."""
    with httpx.Client(timeout=SECONDS, trust_env=False, headers=server.headers) as client:
        if password is not None:
            client.get(f"{server.root}/login")
            answer = client.post(f"{server.root}/login", data={"password": password, "_xsrf": client.cookies["_xsrf"]})
            assert answer.status_code == 302, answer.text
            client.headers["X-XSRFToken"] = client.cookies["_xsrf"]
        yield client


def says(server: Server, code: str, password: str | None = None) -> str:
    """Return the output of code in a kernel that the server starts."""
    with logged_in(server, password) as client:
        answer = client.post(f"{server.root}/api/kernels", json={"name": "python3"})
        assert answer.status_code == 201, answer.text
        name = answer.json()["id"]
        kernel = BlockingKernelClient(connection_file=os.fspath(server.home.runtime_dir / f"kernel-{name}.json"))
        kernel.load_connection_file()
        kernel.start_channels()
        told: list[str] = []
        try:
            ready(kernel)
            reply = kernel.execute_interactive(
                code, timeout=SECONDS, output_hook=lambda message: told.append(message["content"].get("text", ""))
            )
            assert reply["content"]["status"] == "ok", reply["content"]
        finally:
            kernel.stop_channels()
            client.delete(f"{server.root}/api/kernels/{name}")
        return "".join(told).strip()


def test_under_a_server_with_a_password_only(tmp_path: Path) -> None:
    config = {"PasswordIdentityProvider": {"hashed_password": passwd(PASSWORD)}}
    with running_server(tmp_path, token=None, config=config, ready=403) as server:
        assert says(server, WHERE, PASSWORD) == f"{server.url} notebook 42"
        assert httpx.get(f"{server.root}/api/kernels", trust_env=False).status_code == 403, "access without the password is denied"


def test_with_two_servers_of_one_user_of_which_a_kernel_of_the_other_started_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with running_server(home) as outer:
        inherited = json.loads(says(outer, INHERITED))
        assert inherited["OPENRUNTIME_URL"] == outer.url
        with running_server(home, base_url="/second/", environment=inherited) as inner:
            assert says(inner, WHERE) == f"{inner.url} notebook 42"
            assert says(outer, WHERE) == f"{outer.url} notebook 42"
