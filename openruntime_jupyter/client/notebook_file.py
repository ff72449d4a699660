"""File of the notebook that this process runs, and the IPython shell that runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from openruntime_jupyter.schemas.tasks import is_notebook


def ipython_shell() -> Any:
    """Return the IPython shell of this process, or None."""
    module = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


def notebook() -> str | None:
    """Return the file of this process's notebook, as Jupyter Server or VS Code names it; None if it is unknown."""
    name = os.environ.get("JPY_SESSION_NAME")
    if not name and (shell := ipython_shell()) is not None:
        name = shell.user_ns.get("__vsc_ipynb_file__")
    return name if isinstance(name, str) and is_notebook(name) else None


def notebook_named(word: str) -> str:
    """Return the notebook meant by `word`: the absolute path if it is a file here, else the word itself."""
    path = Path(word)
    return os.path.abspath(path) if path.is_file() else word  # noqa: PTH100 - Jupyter Server does not resolve links
