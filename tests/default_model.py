"""Default model, downloaded by `make test`."""

from __future__ import annotations

import os
from pathlib import Path

from openruntime_jupyter.local_models.pull import KNOWN

ADVICE = "run `make test`, or `jupyter openruntime pull --models-dir FOLDER` and set OPENRUNTIME_TEST_MODELS=FOLDER"


def models_dir() -> Path:
    """Return the folder of the model. Raise AssertionError with advice if it is missing."""
    folder = Path(os.environ.get("OPENRUNTIME_TEST_MODELS", ".venv/models")).absolute()
    assert (folder / KNOWN[0].file).exists(), f"{KNOWN[0].file} is not in {folder}: {ADVICE}"
    return folder
