"""The doctor's checks, each with the fault that it must report."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np  # noqa: F401  the doctor sends an array, even if a test has removed the import path
import pytest

from openruntime_jupyter import connect
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.notebook import doctor
from openruntime_jupyter.notebook.doctor import Check, examine
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.storage.schema import APPLICATION_ID
from tests.support import TOKEN, Home, Server, free_port, running_server, wait_until

only_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the Linux wheels of MLX need a BLAS")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("doctor")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    return Client(HttpBackend(server.url, TOKEN))


def found(client: Client, name: str) -> Check:
    """Return the doctor's result for one check."""
    report = examine(lambda: client)
    (check,) = [check for check in report if check.name == name]
    assert report.well is not any(check.verdict == "wrong" for check in report)
    return check


def test_healthy_system_runs_every_check(client: Client) -> None:
    report = examine(lambda: client)
    assert report.well, report.text()
    checks = {check.name: check for check in report}
    parts = {"widgets", "front end", "runtime", "token", "XSRF", "versions", "environments", "device_0", "a task", "a cell"}
    assert checks.keys() == parts | {"history", "spool", "models"}
    assert checks["models"].verdict == "note", "no model is installed"
    assert "jupyter openruntime pull" in checks["models"].says


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    """Return the doctor's checks of a server with several independent faults."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "file").write_text("")
    config = {
        "ServerApp": {"disable_check_xsrf": True, "allow_origin": "*"},
        "OpenRuntimeApp": {"spool_dir": os.fspath(folder / "file" / "spool"), "blas": "/no/such/libblas.so"},
    }
    with running_server(folder, token="", config=config, healthy=False) as running:
        client = Client(HttpBackend(running.url))
        wait_until(client.devices, what="a worker's report of its device")
        return {check.name: check for check in examine(lambda: client)}


@pytest.mark.parametrize(
    ("name", "verdict", "advice"),
    [
        ("XSRF", "wrong", "disable_check_xsrf off"),
        ("spool", "wrong", "set spool_dir"),
        pytest.param("device_0", "note", "libopenblas0-pthread", marks=only_linux),
    ],
)
def test_fault_of_a_server_is_reported_with_advice(faulty: dict[str, Check], name: str, verdict: str, advice: str) -> None:
    assert faulty[name].verdict == verdict
    assert advice in faulty[name].says


def test_embedded_runtime_needs_no_token(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True))
    report = examine(lambda: Client(backend))
    assert report.well, report.text()
    assert "in this kernel" in next(check.says for check in report if check.name == "token")
    assert "XSRF" not in {check.name for check in report}
    backend.stop()


def test_no_server(tmp_path: Path) -> None:
    report = examine(lambda: connect(f"http://127.0.0.1:{free_port()}"))
    assert (report[-1].name, report[-1].verdict) == ("runtime", "wrong")
    assert "connect embedded" in report[-1].says
    assert "1 of 2 checks failed" in report.text()


def test_a_wrong_token(server: Server) -> None:
    report = examine(lambda: connect(server.url, "wrong"))
    assert (report[-1].name, report[-1].verdict) == ("token", "wrong")
    assert "Restart this kernel" in report[-1].says


def test_another_version(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "1.0.0")
    check = found(client, "versions")
    assert check.verdict == "wrong"
    assert f"{sys.executable} -m pip install openruntime-jupyter==" in check.says


@pytest.fixture
def other_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make this kernel one of an environment without any package."""
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    python = os.fspath(tmp_path / "other" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(sys, "path", [""])
    return python


def test_kernel_environment_lacks_the_package(tmp_path: Path, other_python: str) -> None:
    with running_server(tmp_path, environment={"PYTHONPATH": ""}) as running:
        cell = found(Client(HttpBackend(running.url, TOKEN)), "a cell")
    assert cell.verdict == "wrong"
    assert other_python in cell.says
    assert "install" in cell.says


def test_kernel_environment_lacks_a_dependency(client: Client, other_python: str) -> None:
    report = {check.name: check for check in examine(lambda: client)}
    assert report["a cell"].verdict == "wrong"
    assert "exit code 1" in report["a cell"].says or "ModuleNotFoundError" in report["a cell"].says
    assert "operations with" in report["environments"].says


def test_a_runtime_elsewhere_runs_cells_with_its_own_python(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    far = HttpBackend(server.url, TOKEN, local=False)
    monkeypatch.setattr(sys, "executable", "/of/this/machine/python")
    check = found(Client(far), "environments")
    assert check.verdict == "note"
    assert "elsewhere" in check.says


def test_a_kernel_without_widgets(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("ipywidgets", "no_such_widgets"))
    check = found(client, "widgets")
    assert check.verdict == "wrong"
    assert check.says.endswith(f"{sys.executable} -m pip install no_such_widgets")


def test_pages_without_widgets(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PAGE", {"anywidget": "anywidget", "no-such-extension": "no_such_package"})
    check = found(client, "front end")
    assert check.verdict == "note"
    assert "pip install no_such_package, and reload the page" in check.says


def test_history_of_a_newer_release(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.data_dir.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(home.data_dir / "history.sqlite3")) as database:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 99")
    with running_server(home, healthy=False) as broken:
        check = found(Client(HttpBackend(broken.url, TOKEN)), "history")
    assert check.verdict == "wrong"
    assert "newer" in check.says
