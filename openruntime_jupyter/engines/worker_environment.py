"""Environment variables of a worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openruntime_jupyter.environment import is_secret


def worker_environment(
    base: Mapping[str, str], temporary: Path, secret: frozenset[str] = frozenset(), changes: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Return the environment variables of a worker: `base` with the caller's `changes`, without secrets."""
    merged = {**base, **(changes or {})}
    environment: dict[str, Any] = {
        name: value for name, value in merged.items() if value is not None and name not in secret and not is_secret(name)
    }
    environment["OPENRUNTIME_WORKER"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["TMPDIR"] = str(temporary)
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # plots are shown, as in a kernel
    if sys.platform.startswith("linux"):
        tunables = environment.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" not in tunables:
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    return environment
