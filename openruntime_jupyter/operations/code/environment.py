"""The caller's working directory and import path in a worker."""

from __future__ import annotations

import os
import sys

from openruntime_jupyter.operations.base import World


def enter(world: World | None) -> None:
    """Switch to the caller's working directory and import path; raise OSError if the directory can't be entered."""
    if world is None:
        return
    if world.directory is not None:
        try:
            os.chdir(world.directory)
        except OSError as problem:
            raise type(problem)(problem.errno, f"The caller's folder can't be entered ({problem.strerror})", world.directory) from None
    if world.path is not None:
        # The caller's path first, then the entries that this worker needs.
        sys.path[:] = world.path + [folder for folder in sys.path if folder not in world.path]
