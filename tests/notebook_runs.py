"""Runs every notebook, asserts and all, under nbval."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.default_model import models_dir
from tests.support import Home

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
