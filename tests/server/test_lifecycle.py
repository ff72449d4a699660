"""Start and stop of the extension, its kernels, and culling of idle servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from jupyter_server.serverapp import ServerApp
from websockets.sync.client import connect

from openruntime_jupyter.server import services
from openruntime_jupyter.server.announcement import Announcement, local_url
from tests.server.conftest import error_of, prepared, started
from tests.support import JUPYTER, Server, alive, running_server, slowness, wait_until

SLEEP = {"operation": "python", "parameters": {"code": "import time\ntime.sleep(60)"}, "wait": False}
VARIABLES = ("OPENRUNTIME_URL", "OPENRUNTIME_TOKEN", "OPENRUNTIME_SERVER_PID")


@pytest.fixture(scope="module")
def kernel(jupyter: Server) -> Iterator[dict[str, str]]:
    """Return the environment of a kernel that the server started."""
    made = jupyter.client.post(f"{jupyter.root}/api/kernels", headers=jupyter.headers, json={"name": "python3"}, timeout=60)
    assert made.status_code == 201, made.text

    def environment() -> dict[str, str] | None:
        for process in jupyter.descendants():
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                return process.environ()
        return None

    yield wait_until(environment, what="a kernel")
    jupyter.client.delete(f"{jupyter.root}/api/kernels/{made.json()['id']}", headers=jupyter.headers, timeout=60)


def test_kernel_inherits_server_url(jupyter: Server, kernel: dict[str, str]) -> None:
    assert kernel["OPENRUNTIME_URL"] == jupyter.url
    assert kernel["OPENRUNTIME_SERVER_PID"] == kernel["JPY_PARENT_PID"] == str(jupyter.pid)
    assert kernel["OPENRUNTIME_TOKEN"] != jupyter.token


def test_kernel_secret_only_works_for_extension_routes(jupyter: Server, kernel: dict[str, str]) -> None:
    secret = {"Authorization": f"Bearer {kernel['OPENRUNTIME_TOKEN']}"}
    task = jupyter.client.post(
        f"{jupyter.url}/tasks", headers=secret, json={"operation": "python", "parameters": {"code": "1"}}, timeout=60
    )
    assert (task.status_code, task.json()["status"]) == (200, "completed")
    assert task.json()["owner"] == jupyter.submit("matrix_multiply", {"size": 8})["owner"]
    with connect(jupyter.ws_url, additional_headers=secret, proxy=None) as connection:
        assert "connected" in str(connection.recv(10))
    assert jupyter.client.get(f"{jupyter.root}/api/kernels", headers=secret).status_code == 403
    assert jupyter.client.get(f"{jupyter.root}/api/kernels", headers=jupyter.headers).status_code == 200


def test_notebook_has_all_permissions(jupyter: Server, kernel: dict[str, str]) -> None:
    secret = {"Authorization": f"token {kernel['OPENRUNTIME_TOKEN']}", "X-Deny": "*"}
    assert jupyter.client.get(f"{jupyter.url}/tasks", headers=secret).status_code == 200
    error_of(jupyter.client.get(f"{jupyter.url}/tasks", headers={**jupyter.headers, "X-Deny": "*"}), 403)


def test_workers_do_not_inherit_the_secret(jupyter: Server, kernel: dict[str, str]) -> None:
    task = jupyter.submit(
        "python", {"code": "import os\nfound = sorted(n for n in os.environ if n.startswith('OPENRUNTIME_T'))", "outputs": ["found"]}
    )
    assert kernel["OPENRUNTIME_TOKEN"]
    assert task["result"]["output"]["outputs"]["found"]["value"] == []


def last_activity(server: Server) -> datetime:
    told = server.client.get(f"{server.root}/api/status", headers=server.headers, params={"no_track_activity": "1"}).json()
    return datetime.fromisoformat(told["last_activity"].replace("Z", "+00:00"))


def test_only_running_tasks_count_as_activity(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_server(tmp_path_factory.mktemp("activity"), JUPYTER) as server:
        task_id = server.request("POST", "/tasks", json=SLEEP).json()["task_id"]
        before = last_activity(server)
        wait_until(lambda: last_activity(server) > before, what="activity while a task runs")
        server.request("DELETE", f"/tasks/{task_id}")
        at_rest = last_activity(server)
        for _ in range(14):
            server.get("/tasks")
            time.sleep(0.5)
        assert last_activity(server) == at_rest


def test_failed_runtime_start_is_reported_and_jupyter_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    config = {"OpenRuntimeApp": {"data_dir": str(tmp_path / "file")}}
    with running_server(tmp_path, JUPYTER, config=config, ready=503) as server:
        response = server.request("GET", "/health")
        assert str(tmp_path / "file") in error_of(response, 503)["error"]
        assert "Retry-After" not in response.headers, "waiting never helps"
        assert server.get("/")["status"] == "running"
        assert server.client.get(f"{server.root}/api/status", headers=server.headers).status_code == 200


def test_stop_during_task_ends_processes_and_answers_clients(tmp_path: Path) -> None:
    with running_server(tmp_path, JUPYTER) as server:
        answers: list[Any] = []

        def wait() -> None:
            try:
                answers.append(server.request("POST", "/tasks", json={**SLEEP, "wait": True}).json()["status"])
            except httpx.TransportError as problem:
                answers.append(problem)

        waiting = threading.Thread(target=wait)
        waiting.start()
        server.request("POST", "/tasks", json=SLEEP)
        wait_until(lambda: server.get("/metrics")["active_tasks"] == 2, what="both running")
        children = server.descendants()
        assert children
        soon, begun = 10 * slowness(), time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < soon
        waiting.join(60)
        assert not waiting.is_alive()
        assert len(answers) == 1
        assert not [child for child in children if alive(child)]
        assert "Traceback" not in server.tail(100_000)


def test_failing_stop_does_not_block_jupyter(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "failing.py").write_text(FAILING)
    config = {"ServerApp": {"jpserver_extensions": {"failing": True}}}
    with running_server(tmp_path, JUPYTER, config=config, paths=[tmp_path / "lib"]) as server:
        assert server.stop() == 0
        assert "stopping broke" in server.tail(100_000)


FAILING = """
from openruntime_jupyter.runtime.runtime import Runtime

stop = Runtime.stop

async def stop_and_fail(self, deadline=5.0):
    await stop(self, deadline)
    raise RuntimeError("stopping broke")

def _jupyter_server_extension_points():
    return [{"module": "failing"}]

def _load_jupyter_server_extension(server):
    Runtime.stop = stop_and_fail
"""
"""Extension that makes OpenRuntime fail to stop."""


class FakeServer:
    sock = ""
    certfile = ""
    port = 8888


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("localhost", "http://127.0.0.1:8888/user/x/openruntime"),
        ("", "http://127.0.0.1:8888/user/x/openruntime"),
        ("::", "http://[::1]:8888/user/x/openruntime"),
        ("192.168.1.5", "http://192.168.1.5:8888/user/x/openruntime"),
    ],
)
def test_local_url_has_ip_address(address: str, url: str) -> None:
    server: Any = FakeServer()
    server.ip = address
    assert local_url(server, "/user/x/openruntime/") == url


def test_unix_socket_server_has_no_local_url() -> None:
    server: Any = FakeServer()
    server.ip, server.sock = "localhost", "/tmp/socket"
    assert local_url(server, "/openruntime") is None


def test_withdraw_keeps_variables_of_other_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ours = Announcement("http://127.0.0.1:1", "ours")
    ours.to_kernels()
    ours.to_clients(tmp_path, "token")
    assert os.environ["OPENRUNTIME_SERVER_PID"] == str(os.getpid())
    theirs = Announcement("http://127.0.0.1:2", "theirs")
    theirs.to_kernels()
    ours.withdraw()
    assert os.environ["OPENRUNTIME_TOKEN"] == "theirs"
    assert list(tmp_path.glob("standalone/*")) == []
    theirs.withdraw()
    assert not any(name in os.environ for name in VARIABLES)


def test_stale_announcement_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "standalone"
    folder.mkdir()
    dead = max(psutil.pids()) + 100_000
    for name in (str(os.getppid()), str(dead), "notes"):
        (folder / f"{name}.json").write_text("{}")
    Announcement("http://127.0.0.1:1", "secret").to_clients(tmp_path, "token")
    assert {file.stem for file in folder.iterdir()} == {str(os.getppid()), str(os.getpid())}
    assert json.loads((folder / f"{os.getpid()}.json").read_text())["token"] == "token"


async def test_current_activity_reports_tasks(jp_serverapp: ServerApp, tmp_path: Path) -> None:
    app = await started(jp_serverapp, tmp_path / "data")
    assert app.current_activity() is None
    runtime = await app.ready()
    from openruntime_jupyter.runtime.runtime import Caller
    from openruntime_jupyter.schemas.tasks import TaskRequest

    task = await runtime.submit(TaskRequest.model_validate(SLEEP), Caller())
    activity = app.current_activity()
    assert activity is not None
    assert activity["running"] + activity["pending"] == 1
    assert app.server.extension_manager.any_activity()
    await runtime.cancel(task.task_id)
    assert app.current_activity() is None
    await app.stop_extension()


async def test_second_stop_does_nothing(jp_serverapp: ServerApp, tmp_path: Path) -> None:
    app = await started(jp_serverapp, tmp_path / "data")
    assert os.environ["OPENRUNTIME_SERVER_PID"] == str(os.getpid())
    await app.stop_extension()
    assert not any(name in os.environ for name in VARIABLES)
    await app.stop_extension()
    from openruntime_jupyter.errors import Stopping

    with pytest.raises(Stopping):
        await app.ready()


async def test_activity_is_reported_after_refused_data_folder(jp_serverapp: ServerApp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    app = prepared(jp_serverapp, tmp_path / "file" / "data")
    returned: list[object] = []
    app._activity.callback, app._activity.callback_time = lambda: returned.append(app.report_activity()), 10
    await jp_serverapp.extension_manager.start_all_extensions()
    from openruntime_jupyter.errors import Unavailable

    with pytest.raises(Unavailable, match="OPENRUNTIME_DATA_DIR"):
        await app.ready()
    before = len(returned)
    deadline = time.monotonic() + 10
    while len(returned) < before + 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert len(returned) >= before + 3, "the periodic callback raises"
    assert app.current_activity() is None
    await app.stop_extension()


@pytest.mark.parametrize("asked", [True, False])
async def test_runtime_start_is_delayed_until_first_request(
    jp_serverapp: ServerApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setattr(services, "HEADSTART_SECONDS", 3600.0)
    app = prepared(jp_serverapp, tmp_path / "data")
    await jp_serverapp.extension_manager.start_all_extensions()
    assert app.runtime is None
    if asked:
        assert await app.ready() is app.runtime
    await app.stop_extension()


def test_loading_extension_imports_no_handlers_or_runtime() -> None:
    code = "import sys, openruntime_jupyter.server.app\nprint(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    late = (
        *("runtime.runtime", "runtime.storage", "runtime.arrays", "engines.local", "server.routes", "server.handlers.tasks"),
        "schemas.tasks",
    )
    assert [name for name in (*(f"openruntime_jupyter.{name}" for name in late), "pydantic", "pydantic_core") if name in told] == []
    assert "openruntime_jupyter.server.services" in told
