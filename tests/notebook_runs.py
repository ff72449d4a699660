"""Run notebooks, including their assertions, with nbval."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support import Home
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
ALONE = ("quickstart", "arrays", "cluster")
"""Notebooks that run without a server, or start one. tests/notebook runs every magic with both kinds of runtime."""
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
# A kernel accepts the server's variables only from its parent process, which is the pytest of nbval. So they are set in that process, as a
# server does for its kernels.
RUN = """
import os, sys, pytest
if "OPENRUNTIME_URL" in os.environ:
    os.environ["OPENRUNTIME_SERVER_PID"] = str(os.getpid())
sys.exit(pytest.main(sys.argv[1:]))
"""


def home_with_model(folder: Path) -> Home:
    """Return the home of a user with a tiny model. The default one, which tests/acceptance asks, needs a minute for these prompts."""
    home = Home(folder)
    home.data_dir.mkdir(mode=0o700)
    make_tiny_model(home.data_dir / "models" / "tiny", context=4096)
    return home


def run_notebooks(home: Home, environment: Mapping[str, str], *names: str) -> None:
    """Run notebooks with nbval in a separate process. Raise AssertionError with the failing cells."""
    paths = [os.fspath(FOLDER / f"{name}.ipynb") for name in names]
    command = [sys.executable, "-c", RUN, *NBVAL, "-p", "no:cacheprovider", "-q", "--timeout=600", *paths]
    done = subprocess.run(command, cwd=ROOT, env=home.environment(environment), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
