"""Every notebook runs in a kernel on its own. In a file by itself, so that it runs beside the one with a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import home_with_the_model, run_notebooks

pytestmark = pytest.mark.timeout(900)


def test_the_notebooks_run_in_a_kernel_without_a_server(tmp_path: Path) -> None:
    run_notebooks(home_with_the_model(tmp_path), {})
