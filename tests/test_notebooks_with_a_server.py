"""Every notebook runs in a kernel that belongs to a real Jupyter Server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import home_with_the_model, run_notebooks
from tests.support import TOKEN, running_server

pytestmark = pytest.mark.timeout(900)


def test_the_notebooks_run_in_a_kernel_under_a_real_server(tmp_path: Path) -> None:
    with running_server(home_with_the_model(tmp_path)) as server:
        run_notebooks(server.home, {"OPENRUNTIME_URL": server.url, "OPENRUNTIME_TOKEN": TOKEN})
        assert server.get("/tasks")["total_count"] > 0, "the notebooks' tasks ran on the server"
