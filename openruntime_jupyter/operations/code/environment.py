"""The caller's folder and import path, taken on in a worker; the runner restores its own afterwards."""

from __future__ import annotations

import os
import sys

from openruntime_jupyter.operations.base import World


def enter(world: World | None) -> None:
    """Be where the caller is; raises FileNotFoundError that says whose folder is gone."""
    if world is None:
        return
    if world.directory is not None:
        try:
            os.chdir(world.directory)
        except OSError as problem:
            raise type(problem)(problem.errno, f"The caller's folder can't be entered ({problem.strerror})", world.directory) from None
    if world.path is not None:
        # The caller's path first, then what this worker needs to go on working.
        sys.path[:] = world.path + [folder for folder in sys.path if folder not in world.path]
