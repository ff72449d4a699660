"""Smoke tests of an installed wheel, which `tools/run-smoke-tests` runs on other versions of Python. They import nothing from `tests`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wheel_is_installed_and_enabled() -> None:
    import openruntime_jupyter

    assert Path(openruntime_jupyter.__file__).is_relative_to(sys.prefix)
    assert openruntime_jupyter.__version__ in run("-m", "openruntime_jupyter.cli", "--version")
    listed = run("-m", "jupyter_server", "extension", "list")
    assert re.search(rf"openruntime_jupyter {re.escape(openruntime_jupyter.__version__)}.*OK", listed), listed


def test_operation_and_call_run_in_worker() -> None:
    from openruntime_jupyter import connect
    from openruntime_jupyter.errors import TaskFailed

    with connect("embedded") as client:
        assert client.run("matrix_multiply", size=64)["n"] == 64
        assert client.map(lambda number: number * 2, range(4)) == [0, 2, 4, 6]
        with pytest.raises(TaskFailed, match="division"):
            client.call(lambda: 1 / 0)


def test_quickstart_notebook_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
