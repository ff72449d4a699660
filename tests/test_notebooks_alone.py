"""Run notebooks without a server. A separate file, so that it runs in parallel with the test with a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import ALONE, home_with_model, run_notebooks

pytestmark = pytest.mark.timeout(900)


def test_notebooks_run_without_a_server(tmp_path: Path) -> None:
    run_notebooks(home_with_model(tmp_path), {}, *ALONE)
