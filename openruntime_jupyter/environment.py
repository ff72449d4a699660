"""Environment variables: secrets, the data folder, and the environment at the start of this process."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from functools import cache
from pathlib import Path

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

AT_IMPORT = dict(os.environ)
"""The environment when this module was imported, which is normally the first statement of a notebook."""


def is_secret(name: str) -> bool:
    """Return whether the variable `name` is withheld from tasks."""
    return name in SECRETS or name.endswith(SECRET_ENDINGS)


def default_data_dir() -> Path:
    """Return `OPENRUNTIME_DATA_DIR`, or the platform's data folder of the user."""
    from platformdirs import user_data_dir

    return Path(os.environ.get("OPENRUNTIME_DATA_DIR") or user_data_dir("openruntime"))


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


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address or its name, which other machines cannot reach."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
