"""The command `jupyter openruntime`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from openruntime_jupyter import __version__
from openruntime_jupyter.cli import main
from tests.support import JUPYTER, STANDALONE, TOKEN, Home, Server, free_port, running_server, wait_until


def run(home: Home, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command and return its stdout, or its stderr if it must fail."""
    ended = subprocess.run(
        [*STANDALONE, *arguments], env=home.environment(environment), cwd=home.path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr if code else ended.stdout


def answer(capsys: pytest.CaptureFixture[str], server: Server, *arguments: str, token: str = TOKEN, code: int = 0) -> str:
    """Run a command in this process, which starts at once, and return its stdout, or its stderr if it must fail."""
    assert main([*arguments, f"--url={server.url}", f"--token={token}"]) == code
    out, err = capsys.readouterr()
    return err if code else out


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("cli"), STANDALONE, "--OpenRuntimeApp.cpu_slots=3", token=TOKEN) as server:
        yield server


def test_help_fits_on_a_screen_and_names_every_command(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "--version").strip() == __version__
    told = run(home, "--help")
    assert len(told.splitlines()) < 45
    for word in ("status", "tasks", "cancel", "--port", "--token", "--help-all", "localhost:8000"):
        assert word in told
    for command, option in (("status", "--url"), ("tasks", "--url"), ("cancel", "--url"), ("pull", "--models-dir")):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert option in capsys.readouterr().out


def test_help_all_lists_every_setting(home: Home) -> None:
    told = run(home, "--help-all")
    assert {"--OpenRuntimeApp.cpu_slots", "--OpenRuntimeApp.production", "--StandaloneIdentity.allow_local"} <= set(
        re.findall(r"--\w+\.\w+", told)
    )


def test_closed_pipe_is_not_an_error(home: Home) -> None:
    told = subprocess.run(
        ["bash", "-c", f"{shlex.join(STANDALONE)} --help-all | head -1"], env=home.environment(), capture_output=True, text=True, check=True
    )
    assert "--OpenRuntimeApp" in told.stdout
    assert told.stderr == ""


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("zzz", "write settings as --Class.name=value"),
        ("--port=99999", "use 0 to 65535"),
        ("cancel", "required: id"),
        ("tasks --limit=x", "invalid int value"),
        ("tasks zzz", "use one of pending"),
        ("pul", "did you mean pull?"),
        ("--prot=8001", "did you mean --port?"),
        ("tasks runing", "did you mean running?"),
    ],
)
def test_invalid_arguments_are_reported_with_suggestions(capsys: pytest.CaptureFixture[str], typed: str, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(typed.split())
    told = capsys.readouterr().err
    assert "usage:" in told
    assert said in told


def test_invalid_setting_is_named(home: Home) -> None:
    told = run(home, "--OpenRuntimeApp.gpu_slots=0", "--port=0", code=1)
    assert "gpu_slots" in told


def test_settings_reach_the_runtime(server: Server) -> None:
    assert server.get("/devices")["devices"][0]["slots"] == 3


def test_port_0_uses_a_free_port(tmp_path: Path) -> None:
    home = Home(tmp_path)
    process = subprocess.Popen(
        [*STANDALONE, "--port=0"], env=home.environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert re.search(r"listens on http://localhost:[1-9]\d{3,}$", first.strip()), first
        process.terminate()
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
    finally:
        process.kill()
        process.communicate()


def hangs(process: subprocess.Popen[str], port: int) -> bool:
    """Return whether the server listens but does not respond."""
    before = psutil.Process(process.pid).cpu_times()
    try:
        return not httpx.get(f"http://127.0.0.1:{port}/health", timeout=0.5, trust_env=False)
    except httpx.ConnectError:
        return False
    except httpx.TransportError:
        return psutil.Process(process.pid).cpu_times() == before


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Return whether the process has a handler for the signal. Our handler removes itself when called."""
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="sees by /proc whether the signal has come")
def test_signal_during_startup_message_stops_cleanly(home: Home) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:  # fill the pipe, so that the next print blocks
            os.write(writing, b"." * 512)
    os.set_blocking(writing, True)
    port = free_port()
    process = subprocess.Popen(
        [*STANDALONE, f"--port={port}"], env=home.environment(), cwd=home.path, stdout=writing, stderr=subprocess.DEVNULL, text=True
    )
    os.close(writing)
    try:
        wait_until(lambda: hangs(process, port), 20, "a server that waits for its reader")
        process.terminate()
        wait_until(lambda: not catches(process, signal.SIGTERM), 5, "the signal's arrival")
        with open(reading) as told:
            assert told.read().splitlines()[-1].startswith("Stopping")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_status_finds_the_users_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(server.home, "status")
    assert server.url in shown
    assert "healthy" in shown
    assert "device_0" in shown
    described = json.loads(answer(capsys, server, "status", "--json"))
    assert described["health"]["version"] == __version__
    assert described["devices"][0]["id"] == "device_0"


def test_status_of_a_named_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert "healthy" in answer(capsys, server, "status")
    assert "--token=" in answer(capsys, server, "status", token="wrong", code=1)


def test_tasks_are_listed_and_cancelled(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"operation": "python", "parameters": {"code": "import time\ntime.sleep(60)"}, "wait": False, "name": "a long one"}
    body["notebook"] = str(server.home.path / "long.ipynb")
    (server.home.path / "long.ipynb").write_text("{}")
    task_id = server.request("POST", "/tasks", json=body).json()["task_id"]
    wait_until(lambda: server.get(f"/tasks/{task_id}")["status"] == "running", what="a running task")
    listed = run(server.home, "tasks", "--limit=1")
    assert task_id in listed
    assert "running" in listed
    assert "long.ipynb" in listed
    assert "nothing of that name" in answer(capsys, server, "tasks", "--name=nothing of that name")
    of_notebook = run(server.home, "tasks", "--json", "--notebook=long.ipynb", "--name=LONG")
    assert json.loads(of_notebook)["tasks"][0]["task_id"] == task_id
    for words in (["--state=running"], ["running"], ["failed", "running", "--limit=1"]):
        assert json.loads(answer(capsys, server, "tasks", "--json", *words))["tasks"][0]["task_id"] == task_id
    assert f"{task_id} is cancelled" in answer(capsys, server, "cancel", task_id[:-3])
    assert server.get(f"/tasks/{task_id}")["status"] == "cancelled"
    assert "task_0nosuch" in answer(capsys, server, "cancel", "task_0nosuch", code=1)
    done = server.submit("matrix_multiply", {"size": 16})["task_id"]
    assert f"{done} is already completed" in answer(capsys, server, "cancel", done)
    assert "interrupted or timed_out" in answer(capsys, server, "tasks", "interrupted", "timed_out")


def test_ended_tasks_are_listed_with_name_or_error(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for code, name, shown in (
        ("", "a third of it", "a third of it"),
        ("\nraise ValueError('no more')", "failing", "failing: ValueError: no more"),
    ):
        said = f"from openruntime_jupyter import progress\nprogress(3, 10, 'step three'){code}"
        task = server.submit("python", {"code": said}, name=name)
        assert task["progress"]["message"] == "step three"
        line = next(line for line in answer(capsys, server, "tasks").splitlines() if task["task_id"] in line)
        assert line.endswith(shown)
        assert f"{task['execution_time']:.2f}" in line


def test_missing_server_error_explains_how_to_start_one(home: Home) -> None:
    told = run(home, "status", code=1)
    assert "jupyter openruntime" in told
    assert "--url" in told


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("jupyter"), JUPYTER) as server:
        yield server


def test_jupyterlab_terminal_finds_its_server(jupyter: Server, tmp_path: Path) -> None:
    inherited = {"OPENRUNTIME_URL": jupyter.url, "OPENRUNTIME_TOKEN": TOKEN, "OPENRUNTIME_SERVER_PID": str(jupyter.pid)}
    assert jupyter.url in run(Home(tmp_path / "other"), "status", code=0, **inherited)


def test_other_terminal_finds_the_users_jupyter_server(jupyter: Server, tmp_path: Path) -> None:
    assert jupyter.url in run(jupyter.home, "status")
    assert "No OpenRuntime server" in run(Home(tmp_path / "other"), "status", code=1)
    (told,) = jupyter.home.runtime_dir.glob("jpserver-*.json")
    told.chmod(0o644)
    assert "No OpenRuntime server" in run(jupyter.home, "status", code=1), "files writable by other users are ignored"
