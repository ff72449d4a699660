"""`import mlx_lm` without its side effects on the process."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from types import ModuleType

from openruntime_jupyter.errors import EngineError


def import_mlx_lm(offline: bool) -> ModuleType:
    """Import and return the package; `offline` disables access to the hub. Raise `EngineError` with the install command."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import
    try:
        with _limits_kept():
            import mlx_lm
    except ImportError as problem:
        command = f"{sys.executable} -m pip install 'openruntime-jupyter[local]'"
        raise EngineError(f"Local models need mlx-lm, which can't be imported ({problem}). Install it with: {command}") from problem
    package: ModuleType = mlx_lm
    return package


@contextlib.contextmanager
def _limits_kept() -> Iterator[None]:
    """Disable `resource.setrlimit`: importing mlx_lm lowers the limits of open files, and fails if they are lower already."""
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real
