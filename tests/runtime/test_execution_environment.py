from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import openruntime_jupyter
from openruntime_jupyter.runtime.runtime import Runtime
from tests.runtimes import cell, ended, pickled, printed, runtime_in, submit, value

REPOSITORY = Path(openruntime_jupyter.__file__).parents[1]
TELL = "import os, sys\nfound = {'prefix': sys.prefix, 'folder': os.getcwd(), 'path': list(sys.path)}"


@pytest.fixture(scope="module")
def other_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual environment of a kernel, with this package and a module that only it has."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "borrowed.pth").write_text(f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n")
    (packages / "only_there.py").write_text("ANSWER = 'from the other environment'\n")
    return folder


def world(environment: Path, **more: Any) -> dict[str, Any]:
    return {"interpreter": str(environment / "bin" / "python"), **more}


async def test_cell_runs_in_environment_folder_and_path_of_caller(tmp_path: Path, runtime: Runtime, other_environment: Path) -> None:
    folder, extra = tmp_path / "notebooks", tmp_path / "extra"
    folder.mkdir()
    extra.mkdir()
    parameters = {"code": TELL, "outputs": ["found"], "world": world(other_environment, directory=str(folder), path=[str(extra)])}
    found = (await value(runtime, await submit(runtime, "python", parameters)))["found"]
    assert os.path.realpath(found["prefix"]) == os.path.realpath(other_environment)
    assert os.path.realpath(found["folder"]) == os.path.realpath(folder)
    assert found["path"][0] == str(extra)
    code = "import only_there\nanswer = only_there.ANSWER"
    task_id = await submit(runtime, "python", {"code": code, "outputs": ["answer"], "world": world(other_environment)})
    assert await value(runtime, task_id) == {"answer": "from the other environment"}
    ours = await ended(runtime, await cell(runtime, "import only_there"))
    assert ours.failure is not None
    assert ours.failure.type == "ModuleNotFoundError"


async def test_missing_package_is_reported_with_command(tmp_path: Path, runtime: Runtime) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    task = await ended(runtime, await submit(runtime, "python", {"code": "1", "world": world(bare)}))
    assert task.status == "failed"
    assert f"{bare}/bin/python -m pip install openruntime-jupyter=={openruntime_jupyter.__version__}" in (task.error or "")
    assert (await ended(runtime, await submit(runtime, "call"))).status == "completed"


async def test_missing_interpreter_and_other_program_are_reported(runtime: Runtime) -> None:
    missing = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": "/no/such/python"}}))
    assert "/no/such/python can't be started: No such file" in (missing.error or "")
    silent = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": "/bin/true"}}))
    assert "/bin/true ended before it was ready" in (silent.error or "")


async def test_code_runs_without_mlx_and_output_names_command(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "broken" / "mlx").mkdir(parents=True)
    (tmp_path / "broken" / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "broken"} exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    parameters = {"code": "x = 6 * 7", "outputs": ["x"], "world": {"interpreter": str(interpreter)}}
    task_id = await submit(runtime, "python", parameters)
    assert await value(runtime, task_id) == {"x": 42}
    assert "pip install 'openruntime-jupyter[cpu]'" in await printed(runtime, task_id, "stderr")


async def test_other_protocol_version_is_reported_with_command(tmp_path: Path, runtime: Runtime) -> None:
    other = tmp_path / "newer" / "openruntime_jupyter" / "worker"
    other.mkdir(parents=True)
    (other.parent / "__init__.py").touch()
    (other / "__init__.py").touch()
    says_hello = (
        "import json, socket, struct, sys, time\n"
        "body = json.dumps({'protocol': 99}).encode()\n"
        "data = socket.socket(fileno=int(sys.argv[1]))\n"
        "data.sendall(struct.pack('!BIIQ', 10, int(sys.argv[3]), len(body), 0) + body)\n"
        "time.sleep(60)\n"
    )
    (other / "__main__.py").write_text(says_hello)
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "newer"} exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    task = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": str(interpreter)}}))
    assert "protocol 99 instead of" in (task.error or "")
    assert "pip install openruntime-jupyter==" in (task.error or "")


async def test_environment_of_worker_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENRUNTIME_TOKEN", "OPENAI_API_KEY", "JUPYTERHUB_API_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HARMLESS", "seen")

    async with runtime_in(tmp_path) as runtime:
        environment = await value(runtime, await submit(runtime, "call", pickled(_environment)))
        assert environment["HARMLESS"] == "seen"
        assert "secret" not in environment.values()
        assert environment["OPENRUNTIME_WORKER"] == "1"
        assert os.stat(environment["TMPDIR"]).st_mode & 0o777 == 0o700


def _environment() -> dict[str, str]:
    return dict(os.environ)


async def test_unpicklable_and_missing_outputs_are_named(runtime: Runtime) -> None:
    task = await ended(
        runtime,
        await submit(runtime, "python", {"code": "fine = 1\nlock = __import__('threading').Lock()", "outputs": ["fine", "lock"]}),
    )
    assert "'lock'" in (task.error or "")
    task = await ended(runtime, await submit(runtime, "python", {"code": "a = 1", "outputs": ["a", "b"]}))
    assert "without setting 'b'" in (task.error or "")
