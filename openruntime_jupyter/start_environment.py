"""Environment variables at the start of this process, and their changes since then."""

from __future__ import annotations

import contextlib
import os
from functools import cache

AT_IMPORT = dict(os.environ)
"""The environment when this module was imported, which is normally the first statement of a notebook."""


@cache
def at_start() -> dict[str, str]:
    """Return the environment that this process was started with.

    Fall back to the environment at the first import of this package if the operating system does not report it or the
    process title has overwritten it.
    """
    import psutil  # 44 ms, once

    started: dict[str, str] = {}
    with contextlib.suppress(psutil.Error, OSError, NotImplementedError):
        started = psutil.Process().environ()
    # An overwritten environment has lost PATH.
    return started if started and ("PATH" in started or "PATH" not in AT_IMPORT) else AT_IMPORT


SET_BY_KERNEL = {
    "TERM": "xterm-color",
    "CLICOLOR": "1",
    "CLICOLOR_FORCE": "1",
    "FORCE_COLOR": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_USE_FRAME_EVAL": "NO",
}
"""Variables that ipykernel and its debugger set in a kernel at start. The user did not set them."""


def changed_by_now() -> tuple[tuple[str, str | None], ...]:
    """Return the variables changed since the start of this process as sorted pairs; removed ones have the value None."""
    start, now = at_start(), dict(os.environ)
    names = (name for name in start.keys() | now.keys() if name not in SET_BY_KERNEL and start.get(name) != now.get(name))
    return tuple((name, now.get(name)) for name in sorted(names))
