"""The environment variables of a worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from openruntime_jupyter.environment import is_secret


def worker_environment(temporary: Path, secret: frozenset[str] = frozenset()) -> dict[str, str]:
    """The environment of a worker: ours without its secrets, a private temporary folder, and large pages for MLX."""
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name not in secret and not is_secret(name)}
    environment["OPENRUNTIME_WORKER"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["TMPDIR"] = str(temporary)
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # plots are shown, as in a kernel
    if sys.platform.startswith("linux"):
        tunables = environment.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" not in tunables:
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    return environment
