"""`import mlx_lm`, which does more to a process than one would think."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from types import ModuleType

from openruntime_jupyter.errors import EngineError


def import_mlx_lm(offline: bool) -> ModuleType:
    """The package; `offline` keeps it from asking the hub for anything. Raises `EngineError` that says what to install."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # is read once, at the import
    try:
        with _limits_kept():
            import mlx_lm
    except ImportError as problem:
        command = f"{sys.executable} -m pip install 'openruntime-jupyter[local]'"
        raise EngineError(f"A local model needs mlx-lm, which can't be imported ({problem}). Install it there: {command}") from problem
    package: ModuleType = mlx_lm
    return package


@contextlib.contextmanager
def _limits_kept() -> Iterator[None]:
    """mlx_lm lowers the bounds of open files for good as it is imported, and fails where they are lower already."""
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real
