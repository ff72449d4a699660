"""Discovery of the runtime of this process: `connect()`.

The order is: an explicit URL; the server that started this kernel, found by environment variables or its runtime file; a
stand-alone server of this user; an embedded runtime. Well-known ports are never tried, because any user may listen on them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import in_worker
from openruntime_jupyter.client.local_servers import alive, announced, answering, at_url, newest_first, read_private, stand_alone
from openruntime_jupyter.client.transport.embedded import embedded
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import InvalidRequest, NotConnected, WouldDeadlock
from openruntime_jupyter.schemas.endpoints import GET_HEALTH
from openruntime_jupyter.schemas.tasks import Origin

EMBEDDED = "embedded"
"""Value of `url` that selects the runtime of this process."""


def connect(url: str | None = None, token: str | None = None) -> Client:
    """Return a client of the runtime at `url`, or of the runtime of this process.

    Parameters
    ----------
    url
        A stand-alone runtime (`http://127.0.0.1:8000`), a Jupyter Server (`http://127.0.0.1:8888/`, also with `?token=…` as
        Jupyter prints it), or `"embedded"` for a runtime inside this process. The default is the server that started this
        kernel, else a stand-alone server of this user, else an embedded runtime, which starts at first use.
    token
        Access token of the server. The token of this user's stand-alone server is found automatically.

    Raises
    ------
    NotConnected
        If `url` does not respond.
    NotAllowed
        If the token is missing or invalid.
    InvalidRequest
        If `url` is not a valid URL.
    WouldDeadlock
        Inside a task, if no server is available.
    """
    return Client(_find(url, token), origin=_origin())


def _find(url: str | None, token: str | None) -> Backend:
    if url is not None and url != EMBEDDED:
        return at_url(url, token)
    if token is not None:
        raise InvalidRequest.of("token", "`token` requires `url`")
    if url is None and (found := _of_kernel() or stand_alone()) is not None:
        return found
    if in_worker():
        raise WouldDeadlock(
            "Deadlock: this code runs in a task and no server is available; an embedded runtime would wait for the device that this "
            "task holds. Run the work directly in this task, or submit it from the notebook"
        )
    return embedded()


def _origin() -> Origin:
    return "notebook" if "ipykernel" in sys.modules else "python"


def _of_kernel() -> HttpBackend | None:
    """Return the server that started this kernel, found by environment variables or its runtime file."""
    parent = os.environ.get("JPY_PARENT_PID", "")
    if not parent.isdecimal():
        return None
    if (backend := announced()) is not None:
        try:
            backend.call(GET_HEALTH)
        except NotConnected as problem:
            # The server existed when this kernel started. A silent fallback would hide its tasks.
            raise NotConnected(f"{problem}; connect('embedded') uses a runtime inside this process instead") from problem
        return backend
    from jupyter_core.paths import jupyter_runtime_dir

    return answering(_from_jupyter_file(Path(jupyter_runtime_dir(), f"jpserver-{parent}.json")))


def _from_jupyter_file(path: Path) -> HttpBackend | None:
    described = read_private(path)
    if described is None:
        return None
    parts = urlsplit(str(described.get("url") or ""))
    port = described.get("port") or parts.port
    if not port:
        return None
    base = str(described.get("base_url") or "/").strip("/")
    # The host in the file's url may not resolve.
    url = f"{parts.scheme or 'http'}://127.0.0.1:{port}/{base}".rstrip("/")
    return HttpBackend(f"{url}/openruntime", str(described.get("token") or "") or None, patience=5.0, local=True)


def of_user() -> Client | None:
    """Return a client of this user's newest responding Jupyter Server, for terminals outside a kernel."""
    from jupyter_core.paths import jupyter_runtime_dir

    for path in newest_first(Path(jupyter_runtime_dir()), "jpserver-*.json"):
        described = read_private(path)
        if described is not None and alive(described.get("pid")) and (found := answering(_from_jupyter_file(path))) is not None:
            return Client(found, origin="cli")
    return None
