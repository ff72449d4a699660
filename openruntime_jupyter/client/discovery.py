"""Discovery of the runtime of this process: `connect()`.

The order is: an explicit URL; the server that started this kernel, found by environment variables or its runtime file; a
stand-alone server of this user; an embedded runtime. Well-known ports are never tried, because any user may listen on them.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import in_worker
from openruntime_jupyter.client.transport.embedded import embedded
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.environment import default_data_dir
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, NotConnected, TaskNotFound, WouldDeadlock
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
        return _named(url, token)
    if token is not None:
        raise InvalidRequest.of("token", "`token` requires `url`")
    if url is None and (found := _of_kernel() or _stand_alone()) is not None:
        return found
    if in_worker():
        raise WouldDeadlock(
            "Deadlock: this code runs in a task and no server is available; an embedded runtime would wait for the device that this "
            "task holds. Run the work directly in this task, or submit it from the notebook"
        )
    return embedded()


def _origin() -> Origin:
    return "notebook" if "ipykernel" in sys.modules else "python"


def _named(url: str, token: str | None) -> HttpBackend:
    parts = urlsplit(url)
    token = token or next(iter(parse_qs(parts.query).get("token", [])), None)
    path = parts.path.rstrip("/")
    renew = None
    if token is None and not path:
        renew = partial(_own_token, f"{parts.scheme}://{parts.netloc.replace('localhost', '127.0.0.1')}")
        token = renew()
    for end in ("/lab", "/tree"):  # paths of Jupyter's pages
        path = path.removesuffix(end)
    plain = HttpBackend(urlunsplit((parts.scheme, parts.netloc, path, "", "")), token, renew=renew)
    if path.endswith("/openruntime"):
        plain.call(GET_HEALTH)
        return plain
    try:
        plain.call(GET_HEALTH)
        return plain
    except (NotConnected, NotAllowed, TaskNotFound) as problem:
        below = HttpBackend(f"{plain.where}/openruntime", token)
        try:
            below.call(GET_HEALTH)
            return below
        except NotAllowed:
            raise
        except (NotConnected, TaskNotFound):
            raise problem from None
        finally:
            plain.close()


def _of_kernel() -> HttpBackend | None:
    """Return the server that started this kernel, found by environment variables or its runtime file."""
    parent = os.environ.get("JPY_PARENT_PID", "")
    if not parent.isdecimal():
        return None
    url, token = os.environ.get("OPENRUNTIME_URL"), os.environ.get("OPENRUNTIME_TOKEN")
    # A server started from a kernel of another server inherits that server's variables.
    if url and os.environ.get("OPENRUNTIME_SERVER_PID") == parent:
        backend = HttpBackend(url, token, local=True)
        try:
            backend.call(GET_HEALTH)
        except NotConnected as problem:
            # The server existed when this kernel started. A silent fallback would hide its tasks.
            raise NotConnected(f"{problem}; connect('embedded') uses a runtime inside this process instead") from problem
        return backend
    from jupyter_core.paths import jupyter_runtime_dir

    return _answering(_from_jupyter_file(Path(jupyter_runtime_dir(), f"jpserver-{parent}.json")))


def _from_jupyter_file(path: Path) -> HttpBackend | None:
    described = _read_private(path)
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

    for path in _newest_first(Path(jupyter_runtime_dir()), "jpserver-*.json"):
        described = _read_private(path)
        if described is not None and _alive(described.get("pid")) and (found := _answering(_from_jupyter_file(path))) is not None:
            return Client(found, origin="cli")
    return None


def _stand_alone() -> HttpBackend | None:
    for url, token in _own_stand_alone():
        found = _answering(HttpBackend(url, token, patience=5.0, local=True, renew=partial(_own_token, url)))
        if found is not None:
            return found
    return None


def _own_stand_alone() -> Iterator[tuple[str, str | None]]:
    """Yield URL and token of each stand-alone server of this user, newest first."""
    for path in _newest_first(default_data_dir() / "standalone"):
        described = _read_private(path)
        if described is not None and _alive(described.get("pid")) and described.get("url"):
            yield str(described["url"]), str(described.get("token") or "") or None


def _own_token(url: str) -> str | None:
    """Return the token of this user's stand-alone server at `url`, or None."""
    return next((token for found, token in _own_stand_alone() if found == url), None)


def _answering(backend: HttpBackend | None) -> HttpBackend | None:
    """Return `backend` if OpenRuntime responds and accepts the token, else None."""
    if backend is None:
        return None
    try:
        backend.call(GET_HEALTH)
    except (NotConnected, NotAllowed, TaskNotFound):
        backend.close()
        return None
    return backend


def _newest_first(folder: Path, pattern: str = "*.json") -> Iterator[Path]:
    try:
        files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:
        return
    yield from files


def _read_private(path: Path) -> dict[str, object] | None:
    """Return the JSON object in a file that only this user can read or write, or None for any other file."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) & 0o077:
                return None
            described = json.load(file)
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) else None


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process reuses the pid: the server has exited
        return False
    return True
