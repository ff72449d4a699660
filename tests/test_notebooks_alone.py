"""Run notebooks without a server. A separate file, so that it runs in parallel with the test with a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import home_with_model, run_notebooks

pytestmark = pytest.mark.timeout(900)

NAMES = ("quickstart", "cells-and-tasks", "arrays")
"""Notebooks whose tasks differ most without a server. tests/notebook runs every magic with both kinds of runtime."""


def test_notebooks_run_without_a_server(tmp_path: Path) -> None:
    run_notebooks(home_with_model(tmp_path), {}, *NAMES)
