"""Run all notebooks in kernels of a real Jupyter Server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import home_with_model, run_notebooks
from tests.support import TOKEN, running_server

pytestmark = pytest.mark.timeout(900)


def test_notebooks_run_with_a_server(tmp_path: Path) -> None:
    with running_server(home_with_model(tmp_path)) as server:
        run_notebooks(server.home, {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN})
        assert server.get("/tasks")["total_count"] > 0, "the tasks of the notebooks ran on the server"
