"""Run notebooks in kernels of a real Jupyter Server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import ALONE, FOLDER, home_with_model, run_notebooks
from tests.support import TOKEN, running_server

pytestmark = pytest.mark.timeout(900)

NAMES = tuple(sorted({path.stem for path in FOLDER.glob("*.ipynb")} - {*ALONE}))
"""The other notebooks run without a server. The browser tests run the quickstart with a server."""


def test_notebooks_run_with_a_server(tmp_path: Path) -> None:
    with running_server(home_with_model(tmp_path)) as server:
        run_notebooks(server.home, {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN}, *NAMES)
        assert server.get("/tasks")["total_count"] > 0, "the tasks of the notebooks ran on the server"
