"""Discovery order of `connect()`, and untrusted files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter import connect
from openruntime_jupyter.client import discovery, local_servers
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, NotConnected, WouldDeadlock
from tests.support import STANDALONE, TOKEN, Home, Server, free_port, running_server, wait_until


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide all servers until a test creates one."""
    for name in ("JPY_PARENT_PID", "OPENRUNTIME_URL", "OPENRUNTIME_TOKEN", "OPENRUNTIME_SERVER_PID", "OPENRUNTIME_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", os.fspath(tmp_path / "runtime"))


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("standalone"), STANDALONE) as running:
        yield running


def told_by(server: Server, monkeypatch: pytest.MonkeyPatch, parent: int | None = None) -> None:
    """Set the environment that `server` gives its kernels; `parent` is the process that started this one."""
    monkeypatch.setenv("OPENRUNTIME_URL", server.url)
    monkeypatch.setenv("OPENRUNTIME_TOKEN", server.token or "")
    monkeypatch.setenv("OPENRUNTIME_SERVER_PID", str(server.pid))
    monkeypatch.setenv("JPY_PARENT_PID", str(parent or server.pid))


def private(path: Path, content: object, mode: int = 0o600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    path.chmod(mode)


@pytest.mark.parametrize("form", ["{root}/", "{url}", "{root}/lab", "{root}/lab?token={token}"])
def test_the_address_of_a_jupyter_server_is_enough(server: Server, form: str) -> None:
    url = form.format(root=server.root, url=server.url, token=server.token)
    with connect(url, None if "token" in form else server.token) as client:
        assert client.where == server.url
        assert client.health().status == "healthy"


def test_a_stand_alone_runtime_lies_at_its_root(standalone: Server) -> None:
    with connect(standalone.url, TOKEN) as client:
        assert client.where == standalone.url


def test_the_token_of_the_users_own_stand_alone_runtime_need_not_be_given(standalone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(standalone.home.data_dir))
    for url in (standalone.url, standalone.url.replace("127.0.0.1", "localhost") + "/"):
        with connect(url) as client:
            assert client.call(sum, (20, 22)) == 42
    with pytest.raises(NotAllowed):
        connect(standalone.url, "another")


def test_a_client_of_a_server_that_is_just_starting_has_its_token(standalone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(standalone.home.data_dir))
    looks: list[str] = []

    def own_token(url: str) -> str | None:
        looks.append(url)
        return None if len(looks) == 1 else standalone.token

    monkeypatch.setattr(local_servers, "_own_token", own_token)
    with connect(standalone.url) as client:
        assert list(client.map(abs, [-1, -2])) == [1, 2]


def test_clients_go_on_where_the_users_stand_alone_runtime_is_started_anew_with_another_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, port = Home(tmp_path), free_port()
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(home.data_dir))
    with running_server(home, STANDALONE, port=port, token="the first") as server, connect(server.url) as named, connect() as found:
        handles = [client.submit("compute", expression="6 * 7") for client in (named, found)]
        assert [handle.result(60)["value"] for handle in handles] == [42, 42]
        heard: dict[Client, list[dict[str, Any]]] = {named: [], found: []}
        with named.watch(["task_update"], heard[named].append), found.watch(["task_update"], heard[found].append):
            server.stop()
            with running_server(home, STANDALONE, port=port, token="the second"):
                assert [handle.result(60)["value"] for handle in handles] == [42, 42]
                for client, messages in heard.items():
                    assert client.call(sum, (20, 22)) == 42
                    wait_until(partial(connected_again, messages), what="the events of the second server")


def connected_again(messages: list[dict[str, Any]]) -> bool:
    return any(message["type"] == "connected" for message in messages[1:])


def test_a_missing_or_wrong_token_is_told_as_such(server: Server) -> None:
    for token in (None, "wrong"):
        with pytest.raises(NotAllowed, match="token"):
            connect(server.root, token)


def test_an_address_where_nothing_listens_is_an_error_and_nothing_else_is_tried() -> None:
    with pytest.raises(NotConnected, match="No response from"):
        connect(f"http://127.0.0.1:{free_port()}")


def test_a_token_without_an_address_belongs_to_nobody() -> None:
    with pytest.raises(InvalidRequest, match="url"):
        connect(token="x")


def test_a_kernel_finds_its_server_by_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(server, monkeypatch)
    with connect() as client:
        assert client.where == server.url


def test_the_environment_of_another_server_is_not_trusted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(server, monkeypatch, parent=os.getpid())
    assert connect().where == "embedded"


def test_a_kernels_server_that_does_not_answer_is_an_error_and_not_replaced(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(server, monkeypatch)
    monkeypatch.setenv("OPENRUNTIME_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotConnected, match="embedded"):
        connect()


def test_a_kernel_finds_its_server_by_the_file_of_its_parent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", str(server.pid))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", os.fspath(server.home.runtime_dir))
    with connect() as client:
        assert client.where == server.url
        assert client.health().status == "healthy"


def test_the_host_in_that_file_need_not_resolve(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = json.loads((server.home.runtime_dir / f"jpserver-{server.pid}.json").read_text())
    described["url"] = described["url"].replace("127.0.0.1", "no-such-host.invalid").replace("localhost", "no-such-host.invalid")
    private(tmp_path / "runtime" / f"jpserver-{server.pid}.json", described)
    monkeypatch.setenv("JPY_PARENT_PID", str(server.pid))
    assert connect().where == server.url


@pytest.mark.parametrize("change", [{"token": "wrong"}, {"base_url": "/elsewhere/"}, {"port": 1}, {"port": None, "url": ""}])
def test_a_parent_without_openruntime_is_passed_over(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, object]
) -> None:
    described = json.loads((server.home.runtime_dir / f"jpserver-{server.pid}.json").read_text())
    private(tmp_path / "runtime" / f"jpserver-{server.pid}.json", {**described, **change})
    monkeypatch.setenv("JPY_PARENT_PID", str(server.pid))
    assert connect().where == "embedded"


def test_a_stand_alone_server_of_this_user_is_found_by_its_own_file(standalone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(standalone.home.data_dir))
    (file,) = (standalone.home.data_dir / "standalone").glob("*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with connect() as client:
        assert client.where == standalone.url
        assert client.call(lambda: 6 * 7) == 42, "the file's token lets code run"


@pytest.mark.parametrize("fault", ["readable by others", "of a dead process", "no JSON", "a list", "without a url"])
def test_a_file_that_cannot_be_trusted_is_passed_over(standalone: Server, tmp_path: Path, fault: str) -> None:
    described: object = {"url": standalone.url, "token": TOKEN, "pid": standalone.pid}
    if fault == "of a dead process":
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        described = {"url": standalone.url, "token": TOKEN, "pid": ended.pid}
    elif fault == "a list":
        described = [described]
    elif fault == "without a url":
        described = {"token": TOKEN, "pid": standalone.pid}
    path = tmp_path / "data" / "standalone" / f"{standalone.pid}.json"
    private(path, described, 0o644 if fault == "readable by others" else 0o600)
    if fault == "no JSON":
        path.write_text("{")
    assert connect().where == "embedded"


def test_the_newest_stand_alone_server_that_answers_is_taken(standalone: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "standalone"
    private(folder / "1.json", {"url": standalone.url, "token": TOKEN, "pid": standalone.pid})
    private(folder / "2.json", {"url": f"http://127.0.0.1:{free_port()}", "token": TOKEN, "pid": os.getpid()})
    os.utime(folder / "1.json", (1, 1))
    assert connect().where == standalone.url


def test_the_runtime_of_this_process_can_be_asked_for(standalone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_DATA_DIR", os.fspath(standalone.home.data_dir))
    assert connect("embedded").where == "embedded"


def test_a_process_has_one_runtime() -> None:
    assert connect().backend is connect().backend


def test_a_task_hosts_no_runtime_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_WORKER", "1")
    with pytest.raises(WouldDeadlock, match="runs in a task"):
        connect()


def test_where_a_client_comes_from_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert connect().origin == "python"
    monkeypatch.setitem(sys.modules, "ipykernel", discovery)
    assert connect().origin == "notebook"


def test_a_server_that_is_found_is_on_this_machine_whatever_its_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(server, monkeypatch)
    assert connect().backend.local
    assert not HttpBackend("http://example.org", local=None).local
