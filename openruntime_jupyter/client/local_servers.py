"""Servers on this machine: announced to this kernel by its environment, or by a stand-alone server in a file of its user.

Well-known ports are never tried, because any user may listen on them.
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

from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.environment import default_data_dir
from openruntime_jupyter.errors import NotAllowed, NotConnected, TaskNotFound
from openruntime_jupyter.schemas.endpoints import GET_HEALTH


def announced() -> HttpBackend | None:
    """Return the server that started this kernel as its environment names it, or None."""
    url, token = os.environ.get("OPENRUNTIME_URL"), os.environ.get("OPENRUNTIME_TOKEN")
    # A server started from a kernel of another server inherits that server's variables.
    if url and os.environ.get("OPENRUNTIME_SERVER_PID") == os.environ.get("JPY_PARENT_PID", ""):
        return HttpBackend(url, token, local=True)
    return None


def at_url(url: str, token: str | None) -> HttpBackend:
    """Return the server at a URL, which may be that of a page of Jupyter. Raises the errors of `connect`."""
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
        plain.renewed_token()  # a server that has just started announces its token between the first look and its first response
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


def stand_alone() -> HttpBackend | None:
    """Return this user's newest responding stand-alone server, or None."""
    for url, token in _own_stand_alone():
        found = answering(HttpBackend(url, token, patience=5.0, local=True, renew=partial(_own_token, url)))
        if found is not None:
            return found
    return None


def _own_stand_alone() -> Iterator[tuple[str, str | None]]:
    """Yield URL and token of each stand-alone server of this user, newest first."""
    if sys.platform == "win32":  # no server runs there
        return
    for path in newest_first(default_data_dir() / "standalone"):
        described = read_private(path)
        if described is not None and alive(described.get("pid")) and described.get("url"):
            yield str(described["url"]), str(described.get("token") or "") or None


def _own_token(url: str) -> str | None:
    """Return the token of this user's stand-alone server at `url`, or None."""
    return next((token for found, token in _own_stand_alone() if found == url), None)


def answering(backend: HttpBackend | None) -> HttpBackend | None:
    """Return `backend` if OpenRuntime responds and accepts the token, else None."""
    if backend is None:
        return None
    try:
        backend.call(GET_HEALTH)
    except (NotConnected, NotAllowed, TaskNotFound):
        backend.close()
        return None
    return backend


def newest_first(folder: Path, pattern: str = "*.json") -> Iterator[Path]:
    """Yield the files of a folder, newest first."""
    try:
        files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:
        return
    yield from files


def read_private(path: Path) -> dict[str, object] | None:
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


def alive(pid: object) -> bool:
    """Return whether a process of this user has that id."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process reuses the pid: the server has exited
        return False
    return True
