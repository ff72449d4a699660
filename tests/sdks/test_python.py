"""Test the distribution `openruntime-sdk`: built, installed without other packages than it needs, and used with a real server."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from openruntime_jupyter.client.async_base import BaseAsyncClient
from openruntime_jupyter.client.base import BaseClient
from tests.ai.provider_server import providing
from tests.server.ai_support import KEY, profile, steered
from tests.support import STANDALONE, Server, running_server
from tests.test_floors import imports_of, relative

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "sdks" / "python"
HOOK = runpy.run_path(str(PROJECT / "hatch_build.py"))
NEEDED = ("httpx", "pydantic", "websockets")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_sdk_imports_only_its_dependencies() -> None:
    allowed = {*NEEDED, "pydantic_core", "openruntime_jupyter", *sys.stdlib_module_names} - {"fcntl", "resource", "pwd", "grp", "termios"}
    found = [each for path in HOOK["closure"]().values() for each in imports_of(path.read_text(), relative(path))]
    assert len(found) > 100
    assert not [str(each) for each in found if not each.for_types and not each.of(*allowed)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it. Return their folder."""
    folder = tmp_path_factory.mktemp("sdk")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", os.fspath(folder), os.fspath(PROJECT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that has its dependencies and no other package, and return the interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for installed in dependencies(*NEEDED):
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(str(installed.locate_file(top)))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", os.fspath(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-index", os.fspath(wheel)], check=True, timeout=120)
    return folder / "bin" / "python"


def dependencies(*names: str) -> list[Distribution]:
    """Return the named distributions with all that they require here, without extras."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name not in found:
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or ())
            left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return list(found.values())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a stand-alone server with a default provider that echoes prompts."""
    folder = tmp_path_factory.mktemp("server")
    with providing(steered) as provider:
        config = profile(provider.url)
        with running_server(folder, STANDALONE, token=None, config=config, environment={"THE_KEY": KEY}) as running:
            yield running


def run(python: Path, server: Server, code: str) -> str:
    """Run code in the environment, as a user of the server."""
    environment = server.home.environment()
    environment.pop("PYTHONPATH", None)
    command = [os.fspath(python), "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, cwd=server.home.path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_distributions_contain_the_closure_and_nothing_else(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in files if name.endswith(".dist-info/METADATA"))
        assert not [name for name in files if name.endswith(".py") and b"openruntime_jupyter" in archive.read(name)]
    modules = {name for name in files if ".dist-info/" not in name}
    inside = {f"openruntime/{path.relative_to(ROOT / 'openruntime_jupyter')}" for path in HOOK["closure"]().values()}
    assert modules == inside - {"openruntime/client/sdk.py"} | {"openruntime/__init__.py", "openruntime/py.typed"}
    assert re.findall(r"^Requires-Dist: (\w+)", metadata, re.MULTILINE) == sorted(NEEDED)
    assert f"Version: {HOOK['version']()}\n" in metadata
    assert [name for name in files if name.endswith("licenses/LICENSE")]
    with tarfile.open(source) as archive:
        inside = {name.split("/", maxsplit=1)[1] for name in archive.getnames()}
    assert modules | {"hatch_build.py", "pyproject.toml", "README.md", "LICENSE"} <= inside


def test_task_coroutine_and_stream_run_on_server(python: Path, server: Server) -> None:
    code = """
import asyncio, json, sys
import openruntime

client = openruntime.connect()
handle = client.submit("compute", expression="sum(a)", inputs={"a": [1, 2, 3]})
done = [handle.result(60)["value"], handle.task.origin, asyncio.run(client.aio.run("compute", expression="6 * 7"))["value"]]
answer = client.ask("slow word")
done += ["".join(answer), str(answer.result(60))]
client.close()
heavy = {"jupyter_server", "jupyter_core", "mlx", "numpy", "IPython", "psutil", "openruntime_jupyter"} & set(sys.modules)
print(json.dumps([*done, sorted(heavy)]))
"""
    assert json.loads(run(python, server, code)) == [6, "sdk", 42, "You said: slow word", "You said: slow word", []]


def test_client_works_without_posix_modules(python: Path, server: Server) -> None:
    """Windows has neither `fcntl` nor forks."""
    code = f"""
import asyncio, httpx, os, pydantic.main, sys, websockets.sync.client, zoneinfo
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "getuid", "geteuid", "O_NOFOLLOW", "O_CLOEXEC", "pread", "pwrite", "statvfs"):
    delattr(os, name)
sys.platform = "win32"
import openruntime
try:
    openruntime.connect()
except openruntime.errors.NotConnected as problem:
    print(problem)
client = openruntime.connect({server.url!r}, {token_of(server)!r})
client.arrays.put("posix", b"1234")
print(client.run("compute", expression="sum(a)", inputs={{"a": {{"array": "posix"}}}})["value"], client.ask("word").result(60))
with client.watch(["task_update"], print):
    pass
"""
    assert run(python, server, code).splitlines()[:2] == [
        "No server was found on this machine: start one with `jupyter openruntime`, or give connect() a url",
        "202 You said: word",
    ]


def token_of(server: Server) -> str:
    """Return the token that a stand-alone server has announced to its user."""
    (file,) = (server.home.data_dir / "standalone").glob("*.json")
    return str(json.loads(file.read_text())["token"])


def test_endpoints_for_other_programs(python: Path, server: Server) -> None:
    code = f"""
import openruntime
client = openruntime.connect({server.url!r}, {token_of(server)!r})
print(client.info().version == openruntime.__version__, client.openapi()["openapi"], client.enhanced(limit=1).total_count >= 0)
reserved = client.arrays.reserve([2], "float32")
print(client.arrays.put(reserved.id, b"12345678", dtype="float32").state)
handle = client.submit_for_output("python", code="print('hello'); value = 1", outputs=["value"])
print(handle.follow_output().items[0].text.strip(), handle.result(60)["outputs"]["value"]["type"], len(handle.payload()) > 1)
print([each["value"] for each in client.results([client.submit("compute", expression="3 * 3")])])
"""
    assert run(python, server, code).splitlines() == ["True 3.1.0 True", "ready", "hello int True", "[9]"]


def test_examples_of_readme_run(python: Path, server: Server) -> None:
    assert len(EXAMPLES) > 6
    shown = run(python, server, "\n".join(EXAMPLES)).splitlines()
    assert shown[0] == "12"
    assert "You said: What is the capital of Germany?15" in shown
    assert "float32 (2, 2) [[1.0, 2.0], [3.0, 4.0]]" in shown
    assert "[0, 1, 4]" in shown
    assert shown[-1].startswith("[{'field': 'parameters.size'")


def test_asynchronous_client_has_the_methods_of_the_client() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(BaseClient) - public(BaseAsyncClient) == {"follow_session", "leave", "where"}
