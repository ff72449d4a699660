"""Operations of other packages, from `pip install` to the result, with a real package, server and worker."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import model_validator

from openruntime_jupyter.client.discovery import connect
from openruntime_jupyter.errors import InvalidRequest, TaskFailed, UnknownOperation
from openruntime_jupyter.operations import Operation, Parameters
from openruntime_jupyter.operations.registry import Plugins
from tests.support import STANDALONE, Server, running_server

pytestmark = pytest.mark.timeout(300)

WEATHER = '''
"""A mean over days, and ways to go wrong."""

from pydantic import Field

from openruntime_jupyter.operations import Operation, Parameters, Result


class Params(Parameters):
    """Days of weather."""

    days: int = Field(7, description="How many days.", ge=1, le=366)


def run(params, context):
    import mlx.core as mx

    for day in range(params.days):
        context.progress(day + 1, params.days, "days")
    return Result({"mean": mx.mean(mx.arange(params.days)).item(), "device": context.device_type})


def broken_hook(params):
    raise RuntimeError("no estimate today")


def broken_warm():
    raise RuntimeError("cold")


weather = Operation("weather", "The mean of the days.", Params, run, memory=lambda params: 1000 * params.days)
careless = Operation(
    "careless", "Hooks that raise.", Params, lambda params, context: {"ok": True}, memory=broken_hook, seconds=broken_hook, warm=broken_warm
)
shapeless = Operation("shapeless", "Returns a list.", Params, lambda params, context: [1])
guarded = Operation("guarded", "For those who may execute.", Params, lambda params, context: {}, needs_execute=True)
impostor = Operation("compute", "Uses a reserved name.", Params, run)
nothing = "no operation"
'''
ENTRIES = ("weather", "careless", "shapeless", "guarded", "impostor", "nothing")


PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "weather_operations"
version = "1.2"
"""


def install(source: Path, target: Path) -> None:
    """Write the package of WEATHER and install it with pip, without network."""
    source.mkdir()
    entries = "\n".join(f'{entry} = "weather_operations:{entry}"' for entry in ENTRIES)
    (source / "pyproject.toml").write_text(f'{PROJECT}\n[project.entry-points."openruntime.operations"]\n{entries}\n')
    (source / "weather_operations.py").write_text(WEATHER)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def unpack(target: Path, name: str, code: str, entry: str = "weather") -> None:
    """Write a package with one operation as pip would leave it."""
    (target / f"{name}.py").write_text(code)
    information = target / f"{name}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text(f"[openruntime.operations]\n{entry} = {name}:{entry}\n")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder on the import path with a working package and one that can't be imported."""
    folder = tmp_path_factory.mktemp("plugins")
    install(folder / "good", folder / "site")
    unpack(folder / "site", "broken_operations", "import no_such_module_anywhere\n", "storm")
    return folder / "site"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Iterator[Server]:
    """Start a stand-alone server whose environment has both packages."""
    with running_server(tmp_path_factory.mktemp("server"), STANDALONE, paths=[target]) as running:
        yield running


def test_installed_operation_is_listed_with_schema(server: Server) -> None:
    known = {entry["name"]: entry for entry in server.get("/operations")["operations"]}
    assert known["weather"]["summary"] == "The mean of the days."
    assert known["weather"]["parameters_schema"]["properties"]["days"]["maximum"] == 366
    assert known["guarded"]["needs_execute"] is True
    assert known["compute"]["summary"] != "Uses a reserved name."
    assert "storm" not in known


def test_installed_operation_runs_over_http_with_progress(server: Server) -> None:
    task = server.submit("weather", {"days": 5})
    assert task["status"] == "completed", task
    assert task["result"]["output"]["mean"] == 2.0
    assert task["progress"]["n"] == 5
    assert server.get(f"/tasks/{task['task_id']}/output")["items"] == [], "the broken package beside it is not this task's business"


def test_installed_operation_runs_with_client(server: Server) -> None:
    client = connect(server.url, server.token)
    try:
        assert client.run("weather", days=3)["mean"] == 1.0
        with pytest.raises(InvalidRequest, match="days: must be less than or equal to 366"):
            client.run("weather", days=1000)
        with pytest.raises(UnknownOperation, match=r"storm of broken_operations 1\.2.*No module named 'no_such_module_anywhere'"):
            client.run("storm")
        with pytest.raises(TaskFailed, match="shapeless returned list as output"):
            client.run("shapeless")
    finally:
        client.close()


def test_failing_hooks_neither_reject_task_nor_end_worker(server: Server) -> None:
    for _ in range(3):  # later workers warm up what was used here
        assert server.submit("careless", {})["result"]["output"] == {"ok": True}
    assert "Ignored memory() of the operation careless: RuntimeError: no estimate today" in server.tail(100_000)


def test_excluded_operation_is_reported_by_health_and_log(server: Server) -> None:
    health = server.get("/health")
    assert health["status"] == "healthy"
    reported = "\n".join(health["problems"])
    for reason in ("storm of broken_operations", "'compute' is already in use", "weather_operations:nothing) is excluded: TypeError"):
        assert reason in reported
        assert reason in server.tail(100_000)


def test_operation_installed_at_run_time_is_found(server: Server, target: Path) -> None:
    code = WEATHER.replace('"weather"', '"climate"')
    assert server.request("POST", "/tasks", json={"operation": "climate"}).status_code == 422
    assert "parameters.climate" not in server.get("/openapi.json")["components"]["schemas"]
    unpack(target, "climate_operations", code)
    assert server.submit("climate", {"days": 3})["result"]["output"]["mean"] == 1.0
    assert "parameters.climate" in server.get("/openapi.json")["components"]["schemas"]


def test_operation_missing_in_worker_fails_with_advice(server: Server, target: Path) -> None:
    code = WEATHER.replace('"weather"', '"nearby"').replace(
        "def run(", 'import os\nif os.environ.get("OPENRUNTIME_WORKER"):\n    raise ImportError("only where the server is")\n\n\ndef run('
    )
    unpack(target, "nearby_operations", code)
    task = server.submit("nearby", {})
    assert task["status"] == "failed"
    assert "The runtime has this operation, but its worker does not" in task["error"], task["error"]


class Point:
    """Entry point without a distribution."""

    dist = None

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = name, f"somewhere:{name}", load


def made(**changed: Any) -> Operation:
    return Operation(**{"name": "fine", "summary": "", "params": Parameters, "run": lambda params, context: {}, **changed})


def exits() -> Any:
    raise SystemExit(3)


def broken() -> Any:
    raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (exits, "SystemExit: 3"),
        (lambda: made(name="two words"), "is not a valid name"),
        (lambda: made(name="compute"), "'compute' is already in use"),
        (lambda: made(params=dict), "not a subclass of"),
        (lambda: made(run=None), "run is not callable"),
        (lambda: made(warm="soon"), "warm is not callable"),
        (lambda: made(summary=None), "summary is None, not a str"),
        (lambda: made(needs_execute="never"), "needs_execute is 'never', not a bool"),
        (lambda: made(inline=True), "inline is reserved"),
        (lambda: made(resident=True), "a subclass of ModelParameters, which Parameters is not"),
    ],
)
def test_invalid_operation_is_excluded_and_valid_one_kept(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any], reason: str) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point("wrong", load), Point("fine", made)])
    plugins = Plugins({"compute"}.__contains__)
    assert list(plugins.found) == ["fine"]
    assert reason in plugins.left_out["wrong"]


@pytest.mark.parametrize("way_out", [exits, broken])
def test_hooks_that_raise_or_exit_do_not_end_the_server(way_out: Callable[[], Any]) -> None:
    class Checked(Parameters):
        @model_validator(mode="after")
        def check(self) -> Checked:
            return way_out()

    with pytest.raises(InvalidRequest, match="validation by fine failed"):
        made(params=Checked).validate({})
    kind = made(memory=lambda params: way_out(), seconds=lambda params: way_out())
    assert kind.bytes_needed(Parameters()) is None
    assert kind.seconds_needed(Parameters()) is None


@pytest.mark.parametrize("estimate", [float("nan"), -1, "much", float("inf")])
def test_invalid_estimate_is_none(estimate: Any) -> None:
    kind = made(memory=lambda params: estimate, seconds=lambda params: estimate)
    assert kind.bytes_needed(Parameters()) is None
    assert kind.seconds_needed(Parameters()) is None
