"""The environment variables of a worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECRETS = (
    "OPENRUNTIME_TOKEN",
    "OPENRUNTIME_URL",
    "JUPYTER_TOKEN",
    "JUPYTERHUB_API_TOKEN",
    "JPY_API_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_ADMIN_KEY",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_WEBHOOK_SECRET",
)
SECRET_ENDINGS = ("_API_KEY", "_API_TOKEN")


def worker_environment(
    temporary: Path, secret: frozenset[str] = frozenset(), changes: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Return the environment variables of a worker: those of this process without secrets, with the caller's `changes`."""
    environment: dict[str, Any] = {
        name: value
        for name, value in os.environ.items()
        if name not in SECRETS and name not in secret and not name.endswith(SECRET_ENDINGS)
    }
    for name, value in (changes or {}).items():
        if value is None:
            environment.pop(name, None)
        elif name not in SECRETS and name not in secret and not name.endswith(SECRET_ENDINGS):
            environment[name] = value
    environment["OPENRUNTIME_WORKER"] = "1"
    environment["PYTHONSAFEPATH"] = "1"
    environment["TMPDIR"] = str(temporary)
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # plots are shown, as in a kernel
    if sys.platform.startswith("linux"):
        tunables = environment.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" not in tunables:
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
    return environment
