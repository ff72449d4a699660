"""Every notebook runs, asserts and all: in a kernel on its own, and in one that belongs to a real Jupyter Server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.default_model import models_dir
from tests.support import TOKEN, Home, running_server

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[1]
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
# nbval's kernel is a child of the pytest that it runs in, and takes the server's word only if that is from its parent:
# so the server's word is given in that process, as it would be given by a server to its kernels.
RUN = """
import os, sys, pytest
if "OPENRUNTIME_URL" in os.environ:
    os.environ["OPENRUNTIME_SERVER_PID"] = str(os.getpid())
sys.exit(pytest.main(sys.argv[1:]))
"""


def home_with_the_model(folder: Path) -> Home:
    """A user who has pulled the default model."""
    home = Home(folder)
    home.data_dir.mkdir(mode=0o700)
    (home.data_dir / "models").symlink_to(models_dir())
    return home


def run_notebooks(home: Home, environment: Mapping[str, str]) -> None:
    """Run all notebooks under nbval in a process of their own; an AssertionError that shows the failing cells."""
    command = [sys.executable, "-c", RUN, *NBVAL, "-p", "no:cacheprovider", "-q", "--timeout=600", os.fspath(ROOT / "notebooks")]
    done = subprocess.run(command, cwd=ROOT, env=home.environment(environment), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_notebooks_run_in_a_kernel_without_a_server(tmp_path: Path) -> None:
    run_notebooks(home_with_the_model(tmp_path), {})


def test_the_notebooks_run_in_a_kernel_under_a_real_server(tmp_path: Path) -> None:
    with running_server(home_with_the_model(tmp_path)) as server:
        run_notebooks(server.home, {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN})
        assert server.get("/tasks")["total_count"] > 0, "the notebooks' tasks ran on the server"
