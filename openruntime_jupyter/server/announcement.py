"""Announcement of the server's address to its kernels and to other programs of the same user."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jupyter_server.serverapp import ServerApp

from openruntime_jupyter.runtime.permissions import private_folder

ANY = ("", "0.0.0.0", "*")  # noqa: S104 - compared, not bound
HERE = ("localhost", "ip6-localhost")


def local_url(server: ServerApp, path: str) -> str | None:
    """Return the local URL of `path`, or None for a server on a UNIX socket."""
    if server.sock:
        return None
    # An IP address, because resolving `localhost` or the host name depends on files that some containers lack.
    host = "127.0.0.1" if server.ip in (*ANY, *HERE) else "::1" if server.ip == "::" else server.ip
    scheme = "https" if server.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}{path.rstrip('/')}"


class Announcement:
    """Published address of a running server.

    Kernels inherit the address in their environment, with a secret that only the extension's handlers accept. Other programs find
    a stand-alone server by a file that only the same user can read.

    Parameters
    ----------
    url : the server's URL
    secret : token for its kernels
    live_widgets : pages of the server can show live widgets of tasks
    """

    def __init__(self, url: str, secret: str, live_widgets: bool = False) -> None:
        self.url = url
        self._variables = {"OPENRUNTIME_URL": url, "OPENRUNTIME_TOKEN": secret, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
        if live_widgets:
            self._variables["OPENRUNTIME_LIVE_WIDGETS"] = "1"
        self._file: Path | None = None

    def to_kernels(self) -> None:
        """Set the environment variables of this process, which kernels inherit at every start."""
        os.environ.update(self._variables)

    def to_clients(self, data_dir: Path, token: str) -> None:
        """Write the announcement file with the server's token for the user's programs; raises `OSError`."""
        folder = data_dir / "standalone"
        for each in (data_dir, folder):
            private_folder(each)
        for stale in _stale_files(folder):
            stale.unlink(missing_ok=True)
        self._file = folder / f"{os.getpid()}.json"
        unfinished = self._file.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"url": self.url, "token": token, "pid": os.getpid()}, file)
        unfinished.replace(self._file)

    def withdraw(self) -> None:
        """Remove the variables and the file, except variables that another server has set since."""
        if os.environ.get("OPENRUNTIME_TOKEN") == self._variables["OPENRUNTIME_TOKEN"]:
            for name in self._variables:
                os.environ.pop(name, None)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _stale_files(folder: Path) -> Iterator[Path]:
    """Yield the announcement files of servers that were killed."""
    import psutil

    for file in folder.glob("*.json"):
        if not (file.stem.isdigit() and psutil.pid_exists(int(file.stem))):
            yield file
