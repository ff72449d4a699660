"""Test the wheel: its content, metadata, and installation."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import openruntime_jupyter
from tests.support import running_server, wait_until
from tests.test_floors import all_imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "etc/jupyter/jupyter_server_config.d/openruntime_jupyter.json"
DASHBOARD = "openruntime_jupyter/notebook/dashboard/static/dashboard.js"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this tree without network access."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", os.fspath(folder), os.fspath(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment and return its folder of programs.

    A .pth file adds the dependencies of this environment, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", os.fspath(folder / "bin" / "python"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--ignore-installed", os.fspath(wheel)], check=True, timeout=120)
    return folder / "bin"


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def run(*command: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as a user without configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTHON", "OPENRUNTIME"))}
    env = {**kept, "HOME": os.fspath(home), "JUPYTER_NO_CONFIG": ""}
    return subprocess.run(
        [os.fspath(part) for part in command], env=env, cwd=home, capture_output=True, text=True, check=False, timeout=120
    )


def test_wheel_contains_server_extension_config(wheel: Path) -> None:
    assert f"openruntime_jupyter-{PROJECT['version']}.data/data/{CONFIG}" in names(wheel)


def test_wheel_contains_exactly_the_package_files(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "openruntime_jupyter"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    inside = {name for name in names(wheel) if not re.match(r"openruntime_jupyter-[^/]*\.(data|dist-info)/", name)}
    sources = ("openruntime_jupyter/notebook/labextension/", "openruntime_jupyter/notebook/dashboard/frontend/")
    assert {name for name in listed.stdout.split() if not name.startswith(sources)} <= inside
    assert not [name for name in inside if not name.startswith("openruntime_jupyter/") or name.startswith(sources) or "/test" in name]


def test_versions_match() -> None:
    found = runpy.run_path(str(ROOT / "tools" / "version"))["versions"]()
    assert all(set(versions) == {openruntime_jupyter.__version__} for versions in found.values()), found


def test_imported_packages_are_dependencies() -> None:
    """Imports must not rely on transitive dependencies."""
    ours = {re.split(r"[<>=\[; ]", line)[0].lower().replace("-", "_") for line in PROJECT["dependencies"]}
    imported = {found.module.split(".", maxsplit=1)[0].lower() for found in all_imports() if not found.for_types}
    known_as = {"pydantic_core": "pydantic", "jupyter_client": "jupyter_server", "ulid": "python_ulid"}
    foreign = {known_as.get(name, name) for name in imported if name not in sys.stdlib_module_names} - {"openruntime_jupyter"}
    # Optional imports with an installation hint in the error, of which the last one is a dependency of mlx-lm. ipykernel is
    # imported only inside of its kernels.
    optional = {"dask", "distributed", "ipykernel", "keyring", "llguidance", "mlx_lm", "xllamacpp", "huggingface_hub"}
    assert foreign <= ours | optional


def test_installation_enables_valid_server_extension(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "python", "-m", "jupyter_server", "extension", "list", home=tmp_path)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert re.search(r"openruntime_jupyter.*enabled", shown), shown
    assert re.search(rf"openruntime_jupyter {re.escape(PROJECT['version'])}.*OK", shown), shown
    assert os.fspath(environment.parent) in shown, "enabled by the config file of this environment"


def test_installation_enables_front_end_extension(environment: Path, tmp_path: Path) -> None:
    def labextension(*arguments: str) -> str:
        done = run(environment / "python", "-c", "from jupyterlab.labextensions import main; main()", *arguments, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    folder = environment.parent / "share" / "jupyter" / "labextensions" / "openruntime-jupyter"
    assert (folder / "static" / "dashboard.js").read_bytes() == (ROOT / DASHBOARD).read_bytes()
    assert (folder / "install.json").is_file()
    assert re.search(rf"openruntime-jupyter v{re.escape(PROJECT['version'])}.*enabled.*OK", labextension("list"))
    labextension("disable", "openruntime-jupyter")
    assert re.search(r"openruntime-jupyter v.*disabled.*OK", labextension("list"))


def test_installation_adds_jupyter_subcommand(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "jupyter-openruntime", "--version", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert PROJECT["version"] in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="MLX needs a separate backend on Linux only")
def test_server_without_backend_reports_what_to_install(environment: Path, tmp_path: Path) -> None:
    """MLX installed without `cpu` or `cuda` lacks its compute library."""
    bare = next(environment.parent.glob("lib/python*/site-packages")) / "mlx"
    shutil.copytree(Path(sysconfig.get_path("platlib")) / "mlx", bare, ignore=shutil.ignore_patterns("lib", "include", "share"))
    try:
        with running_server(tmp_path, (os.fspath(environment / "python"), "-m", "jupyter_server"), healthy=False) as server:
            health = wait_until(lambda: (found := server.get("/health"))["problems"] and found, 30, "report of the problem")
            assert health["status"] == "degraded"
            assert "openruntime-jupyter[cpu]" in health["problems"][0]
            answer = server.request("POST", "/tasks", json={"operation": "matrix_multiply", "parameters": {}})
            assert answer.status_code == 503
            assert "openruntime-jupyter[cpu]" in answer.json()["error"]
    finally:
        shutil.rmtree(bare)
