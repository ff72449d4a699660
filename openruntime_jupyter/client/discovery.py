"""Which runtime this process belongs to: `connect()`.

The order: what the caller names; the server that started this kernel, by the environment that it left or by its runtime
file; a stand-alone server of this user; else a runtime of this process's own. Never a bare port, which anyone may own.
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
from openruntime_jupyter.client.deadlock_guard import in_worker
from openruntime_jupyter.client.transport.embedded import embedded
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.errors import InvalidRequest, NotAllowed, NotConnected, TaskNotFound, WouldDeadlock
from openruntime_jupyter.runtime.settings import default_data_dir
from openruntime_jupyter.schemas.tasks import Origin

EMBEDDED = "embedded"
"""Given as `url`, it asks for the runtime of this process."""


def connect(url: str | None = None, token: str | None = None) -> Client:
    """A client of the runtime at `url`, or of the one that this process belongs to.

    `url` may be a stand-alone runtime (`http://127.0.0.1:8000`), a Jupyter Server (`http://127.0.0.1:8888/`, also with
    `?token=…` as Jupyter prints it), or `"embedded"` for a runtime inside this process. Without it the server that started this
    kernel is taken, else a stand-alone server of this user, else the runtime of this process, which is started at first use. The
    `token` of a stand-alone server of this user is known without being given.

    Raises `NotConnected` if nothing answers at `url`, `NotAllowed` if it wants a token or another one, `InvalidRequest` for what
    is no URL, and `WouldDeadlock` inside a task that no server could take work from.
    """
    return Client(_find(url, token), origin=_origin())


def _find(url: str | None, token: str | None) -> Backend:
    if url is not None and url != EMBEDDED:
        return _named(url, token)
    if token is not None:
        raise InvalidRequest.of("token", "it belongs to a url: give connect() that too")
    if url is None and (found := _of_kernel() or _stand_alone()) is not None:
        return found
    if in_worker():
        raise WouldDeadlock(
            "this code runs in a task, and there is no server that could take further tasks; a runtime of its own would wait for the "
            "device that this task holds: do the work right here, or submit it from the notebook"
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
    for end in ("/lab", "/tree"):  # where Jupyter's own pages are
        path = path.removesuffix(end)
    plain = HttpBackend(urlunsplit((parts.scheme, parts.netloc, path, "", "")), token, renew=renew)
    if path.endswith("/openruntime"):
        plain.health()
        return plain
    try:
        plain.health()
        return plain
    except (NotConnected, NotAllowed, TaskNotFound) as problem:
        below = HttpBackend(f"{plain.where}/openruntime", token)
        try:
            below.health()
            return below
        except NotAllowed:
            raise
        except (NotConnected, TaskNotFound):
            raise problem from None
        finally:
            plain.close()


def _of_kernel() -> HttpBackend | None:
    """The server that started this kernel, by what it left in the environment, else by its runtime file."""
    parent = os.environ.get("JPY_PARENT_PID", "")
    if not parent.isdecimal():
        return None
    url, token = os.environ.get("OPENRUNTIME_URL"), os.environ.get("OPENRUNTIME_TOKEN")
    # A server that was started from a kernel of another one inherits that one's environment.
    if url and os.environ.get("OPENRUNTIME_SERVER_PID") == parent:
        backend = HttpBackend(url, token, local=True)
        try:
            backend.health()
        except NotConnected as problem:
            # It was there when this kernel started: silently computing elsewhere would hide its tasks.
            raise NotConnected(f"{problem}; connect('embedded') computes inside this process instead") from problem
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
    # The url there may name a host that does not resolve.
    url = f"{parts.scheme or 'http'}://127.0.0.1:{port}/{base}".rstrip("/")
    return HttpBackend(f"{url}/openruntime", str(described.get("token") or "") or None, patience=5.0, local=True)


def of_user() -> Client | None:
    """The newest Jupyter Server of this user that answers: for a terminal that belongs to none, where a person looks at the result."""
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
    """Address and token of each stand-alone server of this user, the newest first."""
    for path in _newest_first(default_data_dir() / "standalone"):
        described = _read_private(path)
        if described is not None and _alive(described.get("pid")) and described.get("url"):
            yield str(described["url"]), str(described.get("token") or "") or None


def _own_token(url: str) -> str | None:
    """The token of this user's stand-alone server at `url`; None where there is none."""
    return next((token for found, token in _own_stand_alone() if found == url), None)


def _answering(backend: HttpBackend | None) -> HttpBackend | None:
    """`backend` if OpenRuntime answers there and lets us in, else None."""
    if backend is None:
        return None
    try:
        backend.health()
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
    """The JSON object in a file that its owner alone, who is us, could have written; None for any other file."""
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
    except PermissionError:  # somebody else's process took the number: the server is gone
        return False
    return True
