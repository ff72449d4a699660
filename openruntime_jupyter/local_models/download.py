"""Download of a file over HTTP that continues where an earlier attempt ended."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from openruntime_jupyter.errors import PullFailed, gigabytes

Progress = Callable[[str, int, int], None]
"""Callback with the current step, the bytes done and the total bytes, which is 0 if it is unknown."""

PIECE = 1 << 20
"""Bytes that are read and written at once."""
ATTEMPTS = 5
"""Number of connections before a download fails. One that has received data does not count."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
STALLED_SECONDS = 30.0
"""Seconds without data after which a connection is considered lost."""


END = 1 << 17
"""Bytes of the end of an archive, which has the list of its files."""
CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+)")


@dataclass(frozen=True)
class Connections:
    """Settings of connections: a file of certificates, hosts whose certificates are not checked, and a proxy. None: the system's."""

    certificates: str | None = None
    trusted_hosts: frozenset[str] = frozenset()
    proxy: str | None = None

    def client(self, url: str) -> httpx.Client:
        """Return a client for requests to the host of `url`."""
        parts = urlsplit(url)
        trusted = {parts.hostname, parts.netloc.rpartition("@")[2]} & self.trusted_hosts
        verify = False if trusted or parts.scheme == "http" else _verification(self.certificates)
        return httpx.Client(verify=verify, proxy=self.proxy, follow_redirects=True, timeout=STALLED_SECONDS)


def _verification(certificates: str | None) -> ssl.SSLContext:
    """Return the checks of certificates: those of the given file, else of the system, for example of a company, and of httpx."""
    if certificates is not None:
        return ssl.create_default_context(cafile=certificates)
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def download(url: str, target: Path, sha256: str | None, connections: Connections, progress: Progress) -> None:
    """Download `url` to `target`, continue the file `target.part` of an earlier attempt, and check the hash.

    Without a hash the download starts from zero, because the file at the address may have changed. Raises `PullFailed`. The part is kept
    for the next attempt unless its hash is wrong.
    """
    part = target.with_name(f"{target.name}.part")
    if sha256 is None:
        part.unlink(missing_ok=True)
    continued = part.exists()
    _receive(url, part, connections, progress)
    if sha256 is not None and hash_of(part, progress) != sha256:
        part.unlink()
        if not continued:
            raise PullFailed(
                f"{shown(url)} has an unexpected SHA-256. The package index may have been tampered with, or a mirror is damaged: "
                "try another one (`pip config list` shows the current one)"
            )
        download(url, target, sha256, connections, progress)  # the part belonged to another file
        return
    part.replace(target)


def download_end(url: str, target: Path, connections: Connections) -> bool:
    """Write the last `END` bytes of a file to their place in `target`, which is otherwise empty.

    Return False, without waiting long, if the server does not send a part of a file, or nothing.
    """
    try:
        with (
            connections.client(url) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity", "Range": f"bytes=-{END}"}) as response,
        ):
            place = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or place is None or int(place["last"]) - int(place["first"]) >= END:
                return False
            with open(target, "wb") as file:
                file.seek(int(place["first"]))
                for piece in response.iter_raw():
                    file.write(piece)
                    if file.tell() > int(place["total"]):
                        return False
    except (httpx.RequestError, OSError):
        return False
    return True


def _receive(url: str, part: Path, connections: Connections, progress: Progress) -> None:
    """Append the rest of the file to `part`, with further connections if one is lost."""
    failed = 0
    with connections.client(url) as client, open(part, "ab") as file:
        os.fchmod(file.fileno(), 0o600)
        while True:
            before = file.tell()
            try:
                with client.stream("GET", url, headers={"Accept-Encoding": "identity", **_range(before)}) as response:
                    if response.status_code == 416:  # the part is complete, or belongs to another file
                        return
                    _require_success(url, response)
                    _write(response, file.fileno(), part, progress)
                    file.seek(0, os.SEEK_END)
                    return
            except httpx.RequestError as problem:
                file.seek(0, os.SEEK_END)
                failed = failed + 1 if file.tell() == before else 0
                if failed == ATTEMPTS:
                    rest = f" to continue after {gigabytes(file.tell())}" if file.tell() else ""
                    raise PullFailed(
                        f"The connection to {urlsplit(url).hostname} failed {ATTEMPTS} times ({str(problem) or type(problem).__name__}): "
                        f"check network and proxy, and pull again{rest}"
                    ) from None
                time.sleep(FIRST_PAUSE * 2**failed)


def _range(start: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-"} if start else {}


def _write(response: httpx.Response, descriptor: int, part: Path, progress: Progress) -> None:
    """Write the content of a response to the end of a file, or to its beginning if the server does not continue it."""
    if response.status_code != 206:
        os.ftruncate(descriptor, 0)
    done = os.fstat(descriptor).st_size
    rest = int(response.headers.get("Content-Length", 0))
    free = shutil.disk_usage(part.parent).free
    if rest > free:
        raise PullFailed(
            f"{part.parent} has {gigabytes(free)} free, and the download needs {gigabytes(rest)} more: free some space, or choose another "
            "folder with --models-dir"
        )
    total = done + rest
    received = done
    for piece in response.iter_raw():  # as it comes, so that little is lost with the connection
        os.write(descriptor, piece)
        received += len(piece)
        progress("downloading", received, total)
    if received < total:
        raise httpx.ReadError("the response ended early")


def _require_success(url: str, response: httpx.Response) -> None:
    status = response.status_code
    if status in (401, 403):
        raise PullFailed(f"{shown(url)} requires other credentials (status {status}): add them to the index URL of pip's settings")
    if status >= 400:
        raise PullFailed(f"{shown(url)} can't be downloaded: status {status}. Check pip's settings (`pip config list`), or try again later")


def shown(url: str) -> str:
    """Return an address without credentials and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def hash_of(file: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            digest.update(piece)
            progress("checking", source.tell(), size)
    return digest.hexdigest()
