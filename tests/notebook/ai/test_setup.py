"""Prompts without a model, in a terminal and on another machine; and downloading a model."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openruntime_jupyter.errors import PullFailed, Unavailable
from openruntime_jupyter.local_models.pull import KNOWN
from openruntime_jupyter.notebook.ai.magic import readable_errors
from openruntime_jupyter.notebook.ai.pull import pull_model
from tests.default_model import models_dir
from tests.notebook.conftest import error_of, running_kernel
from tests.support import Home


def test_missing_model_shows_setup_card(tmp_path: Path) -> None:
    with running_kernel(Home(tmp_path), {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.fspath(tmp_path)}) as kernel:
        cell = kernel.run("%%openruntime ai --out answer\nhello")
        assert cell.error["ename"] == "NoModel"
        assert len(error_of(cell).splitlines()) == 1
        card = cell.shown()[0]
        assert "%openruntime pull" in card
        assert "OPENAI_API_KEY" in card
        assert f"{card}{error_of(cell)}".count("No model is available") == 1
        assert "no model: `%openruntime pull`" in kernel.run("%openruntime config").value
        assert "no cell has failed" in kernel.run("%openruntime fix").stream("stderr")
        refused = kernel.run("%openruntime pull")
        assert refused.error["ename"] == "PullFailed"
        assert "pip config list" in error_of(refused)
        assert "SmolLM2" in error_of(kernel.run("%openruntime pull another"))


def test_stopping_runtime_is_not_reported_as_missing_model() -> None:
    with pytest.raises(Unavailable, match="is stopping"), readable_errors():
        raise Unavailable("The server is stopping: ask again once it runs")


def test_pull_accepts_existing_model(tmp_path: Path) -> None:
    home, file = Home(tmp_path), KNOWN[0].file
    (home.data_dir / "models").mkdir(parents=True)
    (home.data_dir / "models" / file).symlink_to(models_dir() / file)
    with running_kernel(home) as kernel:
        cell = kernel.run("%openruntime pull")
        assert cell.status == "ok", cell.error
        assert "already exists" in cell.shown()[0]
        assert "is ready for prompts" in cell.value
        assert "(local model)" in kernel.run("%openruntime config").value


def test_pull_rejects_remote_runtime() -> None:
    session: Any = SimpleNamespace(client=SimpleNamespace(backend=SimpleNamespace(local=False), where="https://far.example"))
    with pytest.raises(PullFailed, match=r"https://far\.example is on another machine: run `jupyter openruntime pull`"):
        pull_model(session)
