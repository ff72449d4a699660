"""Servers whose tasks run on other hosts, as settings name them."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openruntime_jupyter import __version__, connect
from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.engines.hosts.finder import InvalidHosts
from openruntime_jupyter.notebook.doctor import examine
from openruntime_jupyter.runtime.hosts import hosts_of
from openruntime_jupyter.runtime.settings import Settings
from tests.engines.hosts.dask_processes import NO_COMPILER, PRELOAD
from tests.engines.hosts.sshd import ssh_that
from tests.support import STANDALONE, TOKEN, Home, Server, running_server, wait_until
from tests.tiny_model import make_tiny_model

MEETING = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder / f"{{os.getpid()}}.met").touch()
while len(list(folder.glob("*.met"))) < 2:
    time.sleep(0.01)
"""
"""Code of a task that ends once two of them run at once."""

LOCAL = {"threads_per_worker": 1, "dashboard_address": ":0", "n_workers": 0}


def settings(**values: Any) -> dict[str, Any]:
    return {"OpenRuntimeApp": {"hosts_only": True, "cpu_slots": 1, "spare_workers": 0, **values}}


def used(server: Server, code: str = "pass") -> str:
    """Run a cell and return the device."""
    task = server.submit("python", {"code": code})
    assert task["status"] == "completed", task
    return task["device_used"]


def run_all_kinds(server: Server) -> None:
    """Run a cell, a call, a map, an operation on an array and a prompt."""
    used(server)
    with connect(server.url, token=server.token) as client:
        assert client.call(operator.add, 40, 2) == 42
        assert list(client.map(operator.neg, range(5))) == [0, -1, -2, -3, -4]
        numbers = np.arange(300_000, dtype=np.float32)
        assert np.array_equal(client.call(np.negative, numbers), -numbers)
        generated = client.submit("generate", model="tiny", prompt="a task", max_tokens=4).result(90)
        assert generated.usage.completion_tokens == 4


def home_with_model(folder: Path) -> Home:
    home = Home(folder)
    make_tiny_model(home.data_dir / "models" / "tiny")
    return home


def test_hosts_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh_that(
        tmp_path, monkeypatch, 'case "$1" in *gone*) echo "ssh: Could not resolve hostname gone" >&2; exit 255;; esac; exec sh -c "$2"'
    )
    config_dir = tmp_path / "config"
    config_dir.mkdir()
    tables = [
        f'["{name}"]\npython = "{sys.executable}"\nenv = {{ OPENRUNTIME_DATA_DIR = "{tmp_path}/{name}" }}\n'
        for name in ("me@gpu1", "mac2.local")
    ]
    (config_dir / "hosts.toml").write_text("\n".join(tables))
    environment = {"OPENRUNTIME_CONFIG_DIR": str(config_dir), "PATH": os.environ["PATH"]}
    config = settings(engine="ssh", hosts=["me@gpu1", "mac2.local", "gone"], hosts_only=False)
    with running_server(tmp_path, STANDALONE, config=config, environment=environment, healthy=False) as server:
        wait_until(lambda: {host["state"] for host in server.get("/hosts")["hosts"]} == {"ready", "lost"}, 60)
        hosts = {host["name"]: host for host in server.get("/hosts")["hosts"]}
        assert hosts["gone"]["problem"] == "its name is unknown (ssh: Could not resolve hostname gone)"
        assert hosts["gone"]["advice"].startswith("check the name")
        assert hosts["mac2"]["address"] == "ssh mac2.local"
        devices = {device["id"] for device in server.get("/devices")["devices"]}
        assert devices == {"device_0", "gpu1.device_0", "mac2.device_0"}
        task = server.submit("python", {"code": "print(1)"}, device_preference="mac2")
        assert (task["status"], task["device_used"]) == ("completed", "mac2.device_0")
        checks = {check.name: check for check in examine(lambda: Client(HttpBackend(server.url, TOKEN)))}
        assert (checks["mac2"].verdict, checks["gone"].verdict) == ("ok", "wrong")
        assert "lost, ssh gone: its name is unknown (ssh: Could not resolve hostname gone): check the name" in checks["gone"].says
        assert f"OpenRuntime {__version__}" in checks["mac2"].says


def test_cluster_of_the_server_follows_its_queue(tmp_path: Path) -> None:
    arguments = {**LOCAL, "maximum": 2}
    config = settings(engine="dask", dask_cluster="distributed.LocalCluster", dask_arguments=arguments)
    with running_server(home_with_model(tmp_path), STANDALONE, config=config, environment=NO_COMPILER, healthy=False) as server:
        assert server.get("/hosts")["hosts"] == []
        tasks = [server.submit("python", {"code": MEETING.format(folder=str(tmp_path))}, wait=False)["task_id"] for _ in range(2)]
        assert {server.finished(task)["device_used"] for task in tasks} == {"worker-0.device_0", "worker-1.device_0"}
        run_all_kinds(server)


def test_cluster_of_jobs(tmp_path: Path) -> None:
    """`dask_jobqueue.local.LocalCluster` starts workers by the scripts that SLURM and others would get."""
    arguments = {
        "cores": 1,
        "memory": "4GB",
        "scheduler_options": {"host": "127.0.0.1", "dashboard_address": ":0"},
        "log_directory": str(tmp_path),
        "worker_extra_args": [*PRELOAD],
    }
    config = settings(engine="dask", dask_cluster="dask_jobqueue.local.LocalCluster", dask_arguments=arguments)
    with running_server(home_with_model(tmp_path), STANDALONE, config=config, environment=NO_COMPILER, healthy=False) as server:
        assert used(server) == "LocalCluster-0.device_0"
        run_all_kinds(server)


def test_cluster_that_does_not_start_is_reported(tmp_path: Path) -> None:
    config = settings(engine="dask", dask_cluster="distributed.LocalCluster", dask_arguments={**LOCAL, "protocol": "carrier-pigeon"})
    with running_server(tmp_path, STANDALONE, config=config, healthy=False) as server:
        problem = wait_until(lambda: next((each for each in server.get("/health")["problems"] if "Dask" in each), None), 30)
        assert problem.startswith("The Dask cluster distributed.LocalCluster could not be started")
        assert "carrier-pigeon" in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hosts": ("gpu1",)}, "hosts belongs to engine=ssh, but the engine is local"),
        ({"hosts_only": True}, "hosts_only belongs to engine=ssh or engine=dask"),
        ({"engine": "ssh"}, r"engine=ssh needs hosts, for example --OpenRuntimeApp\.hosts="),
        ({"engine": "ssh", "hosts": ("-x",)}, "'-x' is not a destination of ssh"),
        ({"engine": "ssh", "hosts": ("gpu1",), "dask_address": "tls://a:1"}, "dask_address belongs to engine=dask"),
        ({"engine": "dask"}, "engine=dask needs one of dask_address"),
        ({"engine": "dask", "dask_address": "tls://a:1", "dask_cluster": "distributed.LocalCluster"}, "needs one of dask_address"),
        ({"engine": "dask", "dask_address": "tcp://10.0.0.1:8786"}, r"dask_address: .* would not be encrypted: set up TLS"),
        ({"engine": "dask", "dask_address": "tls://a:1", "dask_arguments": {"n": 1}}, "dask_arguments are those of dask_cluster"),
        ({"engine": "dask", "dask_cluster": "LocalCluster"}, "'LocalCluster' is not a class with its module"),
        ({"engine": "dask", "dask_cluster": "dask_nowhere.Cluster"}, "the package dask_nowhere is missing"),
        ({"engine": "dask", "dask_cluster": "distributed.LocalCluster", "dask_arguments": {"maximum": 0}}, "maximum must be at least 1"),
        ({"engine": "dask", "dask_cluster": "distributed.LocalCluster", "dask_arguments": {"minimum": "1"}}, "minimum must be a number"),
    ],
)
def test_settings_that_do_not_go_together_are_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidHosts, match=message):
        hosts_of(Settings(**values))


def test_server_alone_does_not_start_with_invalid_hosts(tmp_path: Path) -> None:
    home = Home(tmp_path)
    command = [*STANDALONE, "--port=0", "--OpenRuntimeApp.engine=ssh", '--OpenRuntimeApp.hosts=["me@gpu1", "you@gpu1"]']
    ended = subprocess.run(command, env=home.environment(), cwd=home.path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "jupyter openruntime: hosts: 'gpu1' is there 2 times. Name each machine once\n"


def test_other_settings_name_no_hosts() -> None:
    assert hosts_of(Settings()) is None


def test_runtime_without_hosts_imports_nothing_of_them() -> None:
    code = "import sys, openruntime_jupyter.runtime.runtime; print(*(name for name in sys.modules if '.hosts' in name or '.agent' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    settings = {"openruntime_jupyter.runtime.hosts", "openruntime_jupyter.schemas.hosts"}
    protocols = {f"openruntime_jupyter.engines.hosts{name}" for name in ("", ".finder", ".machine")}
    assert set(done.stdout.split()) == settings | protocols


def test_missing_dask_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openruntime_jupyter.runtime.hosts.find_spec", lambda name: None)
    with pytest.raises(InvalidHosts, match=r"pip install 'openruntime-jupyter\[dask\]'"):
        hosts_of(Settings(engine="dask", dask_address="tls://a:1"))
