"""Processes and environments of tasks: a task sees the code that is on disk now, and nothing of earlier tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import openruntime_jupyter
from openruntime_jupyter.engines.local import LocalEngine
from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.worker.__main__ import hello
from tests.runtimes import ME, cell, completed, ended, failed, pickled, printed, python_that, runtime_in, submit, until, value

TELL = "import os, sys\nfound = {'prefix': sys.prefix, 'folder': os.getcwd(), 'path': list(sys.path)}"


@pytest.fixture(scope="module")
def other_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual environment of a kernel, with this package and a module that only it has."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    make_environment(folder, "only_there", "ANSWER = 'from the other environment'\n")
    return folder


def interpreter_of(venv: Path, **more: Any) -> dict[str, Any]:
    return {"interpreter": str(venv / "bin" / "python"), **more}


async def test_cell_runs_in_environment_folder_and_path_of_caller(tmp_path: Path, runtime: Runtime, other_environment: Path) -> None:
    folder, extra = tmp_path / "notebooks", tmp_path / "extra"
    folder.mkdir()
    extra.mkdir()
    parameters = {"code": TELL, "outputs": ["found"], "world": interpreter_of(other_environment, directory=str(folder), path=[str(extra)])}
    found = (await value(runtime, await submit(runtime, "python", parameters)))["found"]
    assert os.path.realpath(found["prefix"]) == os.path.realpath(other_environment)
    assert os.path.realpath(found["folder"]) == os.path.realpath(folder)
    assert found["path"][0] == str(extra)
    code = "import only_there\nanswer = only_there.ANSWER"
    task_id = await submit(runtime, "python", {"code": code, "outputs": ["answer"], "world": interpreter_of(other_environment)})
    assert await value(runtime, task_id) == {"answer": "from the other environment"}
    failure = await failed(runtime, await cell(runtime, "import only_there"))
    assert failure.type == "ModuleNotFoundError"


async def test_missing_package_is_reported_with_command(tmp_path: Path, runtime: Runtime) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    task = await ended(
        runtime, await submit(runtime, "python", {"code": "1", "world": interpreter_of(bare, environment={"PYTHONPATH": None})})
    )
    assert task.status == "failed"
    assert f"{bare}/bin/python -m pip install openruntime-jupyter=={openruntime_jupyter.__version__}" in (task.error or "")
    await completed(runtime, await submit(runtime, "call"))


@pytest.mark.not_over("agent", "dask", reason="a host without the caller's interpreter uses its own")
async def test_missing_interpreter_is_reported(runtime: Runtime) -> None:
    missing = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": "/no/such/python"}}))
    assert "/no/such/python can't be started: No such file" in (missing.error or "")


async def test_other_program_is_reported(runtime: Runtime) -> None:
    silent = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": "/bin/true"}}))
    assert "/bin/true ended before it was ready" in (silent.error or "")


async def test_code_runs_without_mlx_and_output_names_command(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "broken" / "mlx").mkdir(parents=True)
    (tmp_path / "broken" / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    interpreter = python_that(tmp_path, f"PYTHONPATH={tmp_path / 'broken'}")
    parameters = {"code": "x = 6 * 7", "outputs": ["x"], "world": {"interpreter": interpreter}}
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
    interpreter = python_that(tmp_path, f"PYTHONPATH={tmp_path / 'newer'}")
    task = await ended(runtime, await submit(runtime, "python", {"world": {"interpreter": interpreter}}))
    assert "protocol 99 instead of" in (task.error or "")
    assert "pip install openruntime-jupyter==" in (task.error or "")


@pytest.mark.every_engine
@pytest.mark.not_over("dask", reason="its worker started before, with other variables")
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
    code = "fine = 1\nlock = __import__('threading').Lock()"
    for outputs, problem in ((["fine", "lock"], "'lock'"), (["fine", "b"], "without setting 'b'")):
        failure = await failed(runtime, await submit(runtime, "python", {"code": code, "outputs": outputs}))
        assert problem in failure.message


REPOSITORY = Path(openruntime_jupyter.__file__).parents[1]


def world(folder: Path, kernel: str = "kernel", **more: Any) -> dict[str, Any]:
    """The execution environment of a kernel that runs in `folder`."""
    return {"directory": str(folder), "path": [str(folder)], "kernel": kernel, **more}


def make_environment(folder: Path, module: str, code: str) -> Path:
    """Create a virtual environment with this package and one module, and return its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "borrowed.pth").write_text(f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n")
    (packages / f"{module}.py").write_text(code)
    return packages


async def found(runtime: Runtime, code: str, **parameters: Any) -> Any:
    """Return the value of `r` after a cell."""
    return (await value(runtime, await submit(runtime, "python", {"code": code, "outputs": ["r"], **parameters})))["r"]


async def burst(runtime: Runtime, name: str, function: Any, *arguments: Any, caller: Caller = ME, **parameters: Any) -> Any:
    """Return the result of one call of a burst."""
    request = TaskRequest(operation="call", parameters={**pickled(function, *arguments), "burst": name, **parameters})
    return await value(runtime, (await runtime.submit(request, caller)).task_id)


def pid() -> int:
    return os.getpid()


def read_helper() -> Any:
    import helper  # type: ignore[import-not-found]

    return helper.VERSION, os.getpid()


async def test_each_cell_and_call_has_its_own_process(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, spare_workers=1) as runtime:
        pids = [await found(runtime, "import os\nr = os.getpid()") for _ in range(2)]
        pids += [await value(runtime, await submit(runtime, "call", pickled(pid))) for _ in range(2)]
        assert len(set(pids)) == 4


async def test_calls_of_one_burst_share_a_process_that_ends_with_it(runtime: Runtime) -> None:
    one = {await burst(runtime, "one", pid) for _ in range(3)}
    assert len(one) == 1
    assert await burst(runtime, "two", pid) not in one
    assert await burst(runtime, "one", pid, caller=Caller("somebody else")) not in one
    assert await burst(runtime, "one", pid, world={"kernel": "another"}) not in one
    assert await value(runtime, await submit(runtime, "call", pickled(pid))) not in one
    await until(lambda: not runtime.engine.workers(), 20, "the end of the workers")


async def test_call_of_a_burst_sees_an_edited_module(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    helper = project / "helper.py"
    helper.write_text("VERSION = 1\n")
    os.utime(helper, (1, 1))

    async with runtime_in(tmp_path / "data") as runtime:
        first, process = await burst(runtime, "one", read_helper, world=world(project))
        assert (await burst(runtime, "one", read_helper, world=world(project)))[1] == process
        helper.write_text("VERSION = 2\n")
        second, other = await burst(runtime, "one", read_helper, world=world(project))
        assert (first, second) == (1, 2)
        assert other != process


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of installed packages of a separate environment, and the execution environment of a kernel there."""
    folder = tmp_path / "venv"
    packages = make_environment(folder, "installed_one", "VERSION = 1\n")
    os.utime(packages / "installed_one.py", (1, 1))
    project = tmp_path / "project"
    project.mkdir()
    return packages, world(project, interpreter=str(folder / "bin" / "python"), path=[str(project), str(packages)])


IMPORTED = "import sys\nr = 'installed_one' in sys.modules"
USES_IT = "import installed_one\nr = installed_one.VERSION"


async def prepared(runtime: Runtime) -> None:
    """Wait for a spare that has imported what tasks of its kernel imported."""
    engine = runtime.engine
    assert isinstance(engine, LocalEngine)
    await until(
        lambda: any("installed_one" in worker.imports and worker.prepared.done() and worker.fresh for worker in engine._workers),
        60,
        "a spare",
    )


@pytest.mark.not_over("agent", "dask", reason="looks at the spares of the pool")
async def test_spare_imports_packages_that_its_kernel_used(tmp_path: Path, site: tuple[Path, dict[str, Any]]) -> None:
    async with runtime_in(tmp_path / "data", spare_workers=1) as runtime:
        assert await found(runtime, USES_IT, world=site[1]) == 1
        await prepared(runtime)
        assert await found(runtime, IMPORTED, world=site[1]) is True
        await prepared(runtime)
        assert await found(runtime, IMPORTED, world={**site[1], "kernel": "another"}) is False


@pytest.mark.not_over("agent", "dask", reason="looks at the spares of the pool")
async def test_spare_with_outdated_imports_is_not_used(tmp_path: Path, site: tuple[Path, dict[str, Any]]) -> None:
    packages, here = site

    async with runtime_in(tmp_path / "data", spare_workers=1) as runtime:
        assert await found(runtime, USES_IT, world=here) == 1
        await prepared(runtime)
        (packages / "installed_one.py").write_text("VERSION = 2\n")
        assert await found(runtime, USES_IT, world=here) == 2


@pytest.mark.not_over("agent", "dask", reason="looks at the spares of the pool")
async def test_variable_set_before_an_import_counts(tmp_path: Path, site: tuple[Path, dict[str, Any]]) -> None:
    """A package may read its environment while it is imported, so a spare that imported it with another one is not used."""
    packages, here = site
    (packages / "installed_one.py").write_text("import os\nVERSION = os.environ.get('MODE')\n")

    async with runtime_in(tmp_path / "data", spare_workers=1) as runtime:
        assert await found(runtime, "import os\nos.environ['MODE'] = 'set in the cell'\n" + USES_IT, world=here) == "set in the cell"
        assert await found(runtime, USES_IT, world=here) is None
        await prepared(runtime)
        assert await found(runtime, USES_IT, world={**here, "environment": {"MODE": "set in the notebook"}}) == "set in the notebook"
        assert await found(runtime, USES_IT, world=here) is None


async def test_worker_has_variables_of_its_caller_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVED", "1")
    look = (
        "import os, psutil\nr = [os.environ.get(n) for n in ('ADDED', 'REMOVED', 'OPENAI_API_KEY')], 'ADDED' in psutil.Process().environ()"
    )

    async with runtime_in(tmp_path, spare_workers=1) as runtime:
        changes = {"ADDED": "1", "REMOVED": None, "OPENAI_API_KEY": "secret"}
        assert await found(runtime, look, world={"environment": changes}) == (["1", None, None], True)
        assert (await found(runtime, look))[0] == [None, "1", None]


async def test_kernels_with_changed_variables_leave_few_workers(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, spare_workers=1) as runtime:
        for number in range(4):
            changed = {"environment": {"NUMBER": str(number)}, "kernel": f"kernel {number}"}
            assert await found(runtime, "import os, calendar\nr = os.environ['NUMBER']", world=changed) == str(number)
        await until(lambda: all(worker.state == "idle" for worker in runtime.engine.workers()), 60, "idle workers")
        await until(lambda: len(runtime.engine.workers()) <= 3, 60, "one spare, and one for each of two kernels")


async def test_threads_of_a_task_end_with_it_and_are_named(runtime: Runtime) -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='mine').start()"
    task_id = await cell(runtime, code)
    await completed(runtime, task_id)
    assert "mine" in await printed(runtime, task_id, "stderr")
    await until(lambda: not runtime.engine.workers(), 20, "the end of the worker")


def test_spare_makes_no_context_on_the_device() -> None:
    assert hello(None, devices=False)["devices"] == []
    assert hello(None, devices=True)["devices"]
