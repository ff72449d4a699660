"""`jupyter openruntime` as a real process: authentication, start and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.server.conftest import error_of, refusal_of
from tests.support import STANDALONE, Home, Server, alive, free_port, running_server, slowness, wait_until

QUICK = {"operation": "matrix_multiply", "parameters": {"size": 16, "iterations": 1}}
ROOT = getattr(os, "getuid", lambda: -1)() == 0


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start `jupyter openruntime` with default options, except for the port."""
    with running_server(tmp_path_factory.mktemp("open"), STANDALONE, token=None) as server:
        yield server


def announced(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((server.home.data_dir / "standalone" / f"{server.pid}.json").read_text())
    return told


def test_local_program_needs_no_token_for_safe_operations(open_server: Server) -> None:
    response = open_server.request("POST", "/tasks", json=QUICK)
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert open_server.get("/tasks/enhanced")["total_count"] >= 1
    assert "Set-Cookie" not in response.headers


def test_task_without_token_has_timeout(open_server: Server) -> None:
    assert open_server.submit(**QUICK)["timeout"] == 300.0  # type: ignore[arg-type]
    response = open_server.request("POST", "/tasks", json={**QUICK, "timeout": 10_000})
    assert response.status_code == 422 or response.json()["timeout"] <= 300.0


@pytest.mark.parametrize("operation", ["python", "call"])
def test_running_code_needs_printed_token(open_server: Server, operation: str) -> None:
    parameters = {"code": "6 * 7"} if operation == "python" else {"pickled": "gASVDwAAAAAAAACMBWFueHhhlC4="}
    body = {"operation": operation, "parameters": parameters}
    assert "token" in error_of(open_server.request("POST", "/tasks", json=body), 403)["error"]
    printed = open_server.tail().partition("Authorization: token ")[2].split()[0]
    assert printed == announced(open_server)["token"]
    response = open_server.request("POST", "/tasks", json=body, headers={"Authorization": f"token {printed}"})
    assert response.status_code == 200


def test_wrong_token_is_rejected(open_server: Server) -> None:
    told = error_of(open_server.request("GET", "/health", headers={"Authorization": "token wrong"}), 403)
    assert "wrong" in told["error"]
    error_of(open_server.request("GET", "/health", params={"token": "wrong"}), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Host": "x"},
        {"Forwarded": "for=10.0.0.1"},
        {"X-Real-Ip": "127.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
def test_foreign_or_forwarded_request_needs_token(open_server: Server, headers: dict[str, str]) -> None:
    error_of(open_server.request("GET", "/health", headers=headers), 403)
    error_of(open_server.request("POST", "/tasks", json=QUICK, headers=headers), 403)
    additional = {name: value for name, value in headers.items() if name != "Host"} or {"Via": "x"}
    if {"Origin", "Sec-Fetch-Site"} & set(headers):
        with pytest.raises(InvalidStatus) as caught, connect(open_server.ws_url, additional_headers=additional, proxy=None):
            pass
        assert caught.value.response.status_code == 403
    else:
        assert refusal_of(open_server.ws_url, additional)[0] == 4001
    if "Host" not in headers:
        token = announced(open_server)["token"]
        known = {**headers, "Authorization": f"token {token}"}
        assert open_server.request("POST", "/tasks", json=QUICK, headers=known).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_non_json_content_type_is_rejected(open_server: Server, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    error_of(open_server.request("POST", "/tasks", content=json.dumps(QUICK), headers=headers), 400)


def test_same_origin_page_is_allowed(open_server: Server) -> None:
    headers = {"Origin": open_server.url, "Sec-Fetch-Site": "same-origin"}
    assert open_server.request("POST", "/tasks", json=QUICK, headers=headers).status_code == 200
    with connect(open_server.ws_url, origin=Origin(open_server.url), proxy=None) as connection:
        assert "connected" in str(connection.recv(10))


@pytest.mark.skipif(not (sys.platform.startswith("linux") and ROOT), reason="needs Linux, and root to change the user")
def test_other_local_user_needs_token(open_server: Server) -> None:
    script = """
import encodings.idna, os, sys, urllib.request
asker = urllib.request.build_opener(urllib.request.ProxyHandler({}))
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
print(asker.open(sys.argv[2]).status)
"""
    asked = [
        subprocess.run([sys.executable, "-c", script, user, f"{open_server.url}/health"], capture_output=True, text=True, check=False)
        for user in ("65534", "0")
    ]
    assert "HTTP Error 403" in asked[0].stderr
    assert asked[1].stdout.strip() == "200"


def test_standalone_server_keeps_only_shutdown_route(open_server: Server) -> None:
    for path in ("/api", "/api/kernels", "/api/contents", "/login", "/static/x", "/tree", "/lab"):
        error_of(open_server.request("GET", path), 404)
    assert open_server.request("POST", "/api/shutdown").status_code == 403
    assert open_server.get("/health")["status"] == "healthy"


def test_announcement_file_is_private(open_server: Server) -> None:
    file = open_server.home.data_dir / "standalone" / f"{open_server.pid}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    told = announced(open_server)
    assert (told["url"], told["pid"]) == (open_server.url, open_server.pid)


def test_standalone_server_imports_no_heavy_modules(open_server: Server) -> None:
    script = (
        "import sys; sys.modules.setdefault('rfc3987_syntax', None); import openruntime_jupyter.server.standalone;"
        "print(' '.join(name for name in sys.argv[1:] if sys.modules.get(name)))"
    )
    heavy = ["rfc3987_syntax", "lark", "mlx", "numpy", "IPython", "ipywidgets", "openai", "httpx", "jupyterlab"]
    loaded = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def started(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `jupyter openruntime` with options that make it exit."""
    home = Home(folder / "home")
    return subprocess.run(
        [*STANDALONE, *arguments], env=home.environment(environment), cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )


def test_used_port_error_suggests_other_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = started(tmp_path, f"--port={port}")
    assert ended.returncode == 1
    assert f"Port {port} is in use" in ended.stderr
    assert f"--port={port + 1}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--ip=*"], "--token"), (["--ip=::"], "--token"), (["--token="], "--token"), (["--ip=192.0.2.1", "--token=secret"], "192.0.2.1")],
    ids=["any address", "any IPv6 address", "empty token", "address of another machine"],
)
def test_unsafe_or_impossible_address_and_token_are_rejected(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = started(tmp_path, f"--port={free_port()}", *arguments)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_remote_server_needs_token_for_every_request(tmp_path: Path) -> None:
    port = free_port()
    with running_server(tmp_path, STANDALONE, "--ip=0.0.0.0", token="chosen", port=port) as server:
        assert server.request("GET", "/health").status_code == 200
        assert "chosen" not in server.tail()
        told = error_of(server.client.get(f"{server.url}/health"), 403)
        assert "other machines" in told["error"]


def test_require_token_applies_to_local_requests(tmp_path: Path) -> None:
    with running_server(
        tmp_path, STANDALONE, "--require-token", environment={"JUPYTER_TOKEN": "from the environment"}, token=None, ready=403
    ) as server:
        error_of(server.request("GET", "/health"), 403)
        described = server.request("GET", "/openapi.json", headers={"Authorization": "token from the environment"}).json()
        assert {} not in described["paths"]["/tasks"]["post"]["security"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "jupyter server stop"])
def test_one_signal_or_request_stops_server_and_workers(tmp_path: Path, how: signal.Signals | str) -> None:
    with running_server(tmp_path, STANDALONE, token=None) as server:
        token = announced(server)["token"]
        body = {"operation": "python", "parameters": {"code": "import time\ntime.sleep(60)"}, "wait": False}
        server.request("POST", "/tasks", json=body, headers={"Authorization": f"token {token}"})
        children = wait_until(server.descendants, what="a worker")
        file = server.home.data_dir / "standalone" / f"{server.pid}.json"
        assert file.exists()
        soon, begun = 8 * slowness(), time.monotonic()
        if isinstance(how, signal.Signals):
            server.process.send_signal(how)
        else:
            httpx.post(f"{server.root}/api/shutdown", headers={"Authorization": f"token {token}"}, trust_env=False).raise_for_status()
        assert server.ended() == 0
        assert time.monotonic() - begun < soon
        assert not [child for child in children if alive(child)]
        assert not file.exists()
        assert list(server.home.runtime_dir.glob("jpserver-*")) == []
        assert "Traceback" not in server.tail()


def test_next_server_removes_file_of_killed_server(tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE, token=None) as killed:
        killed.kill()
        file = killed.home.data_dir / "standalone" / f"{killed.pid}.json"
        assert file.exists()
        with running_server(killed.home, STANDALONE, token=None) as following:
            assert not file.exists()
            assert announced(following)["pid"] == following.pid
        wait_until(lambda: not killed.descendants(), what="the end of the killed server's workers")


def test_server_start_is_fast(tmp_path: Path) -> None:
    # 0.5 s on the reference machine.
    best = 60.0
    for _ in range(3):
        slow, begun = slowness(), time.monotonic()
        with running_server(tmp_path, STANDALONE, token=None, healthy=False):
            best = min(best, (time.monotonic() - begun) / slow)
        if best < 2.0:
            return
    raise AssertionError(f"{best:.1f} s")


def test_server_memory_is_small(open_server: Server) -> None:
    assert psutil.Process(open_server.pid).memory_info().rss < 150e6
