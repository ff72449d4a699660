"""Where the server is to be found, and how its kernels and its user's programs are told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jupyter_server.serverapp import ServerApp

from openruntime_jupyter.runtime.permissions import private_folder

ANY = ("", "0.0.0.0", "*")  # noqa: S104
HERE = ("localhost", "ip6-localhost")


def local_url(server: ServerApp, path: str) -> str | None:
    """The address of `path` for a program of this machine; None for a server on a UNIX socket, which has none."""
    if server.sock:
        return None
    # Numbers: what `localhost` is, or the host's name, depends on files that not every container has.
    host = "127.0.0.1" if server.ip in (*ANY, *HERE) else "::1" if server.ip == "::" else server.ip
    scheme = "https" if server.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}{path.rstrip('/')}"


class Announcement:
    """Tells of a server that runs, and withdraws that.

    Kernels inherit it by their environment, with a secret that only our handlers accept; the user's other programs find a
    stand-alone server by a file that nobody else can read.
    """

    def __init__(self, url: str, secret: str) -> None:
        self.url = url
        self._variables = {"OPENRUNTIME_URL": url, "OPENRUNTIME_TOKEN": secret, "OPENRUNTIME_SERVER_PID": str(os.getpid())}
        self._file: Path | None = None

    def to_kernels(self) -> None:
        """Put it into this process's environment, which kernels inherit, restarted ones too."""
        os.environ.update(self._variables)

    def to_clients(self, data_dir: Path, token: str) -> None:
        """Write it, with the server's own token, where this user's programs look; raises `OSError`."""
        folder = data_dir / "standalone"
        for each in (data_dir, folder):
            private_folder(each)
        for stale in _of_the_dead(folder):
            stale.unlink(missing_ok=True)
        self._file = folder / f"{os.getpid()}.json"
        unfinished = self._file.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"url": self.url, "token": token, "pid": os.getpid()}, file)
        unfinished.replace(self._file)

    def withdraw(self) -> None:
        """Undo both; what another server has put there meanwhile stays."""
        if os.environ.get("OPENRUNTIME_TOKEN") == self._variables["OPENRUNTIME_TOKEN"]:
            for name in self._variables:
                os.environ.pop(name, None)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _of_the_dead(folder: Path) -> Iterator[Path]:
    """Files of servers that were killed."""
    import psutil

    for file in folder.glob("*.json"):
        if not (file.stem.isdigit() and psutil.pid_exists(int(file.stem))):
            yield file
