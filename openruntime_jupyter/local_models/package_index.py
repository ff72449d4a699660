"""Files of packages on the package indexes of pip's settings: an index, a page or folder of files, certificates and a proxy."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from openruntime_jupyter.errors import PullFailed
from openruntime_jupyter.local_models.download import Connections, shown

Link = tuple[str, str, str | None]
"""Name, address and SHA-256 of a file."""

DEFAULT = re.compile(r"Base URL[^(]*\(default\s+(https://[^\s)]+)\)")
"""Part of pip's help with the address of its default index."""
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
SETTING = re.compile(r"(?P<section>:env:|global|download)\.(?P<name>[a-z-]+)=(?P<value>.*)")
SECTIONS = ("global", "download", ":env:")
"""Sections of pip's settings that apply; later ones take precedence."""


@dataclass(frozen=True)
class PackageFile:
    """Wheel or source distribution. `url` is an address, or a path; `sha256` is None if the index does not tell it."""

    name: str
    version: Version
    url: str
    sha256: str | None

    @property
    def path(self) -> Path | None:
        """Return the path of a file on this machine."""
        return _local(self.url)


@dataclass(frozen=True)
class PackageIndexes:
    """Indexes (PEP 503 and 691), and pages or folders with files."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]
    connections: Connections

    @classmethod
    def from_pip(cls) -> PackageIndexes:
        """Return those of pip's settings, in its files and in the environment."""
        settings = pip_settings()
        off = settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
        indexes = () if off else (settings.get("index-url") or default_index(), *settings.get("extra-index-url", "").split())
        hosts = frozenset(settings.get("trusted-host", "").split())
        connections = Connections(settings.get("cert") or None, hosts, settings.get("proxy") or None)
        return cls(indexes, tuple(settings.get("find-links", "").split()), connections)

    def find(self, text: str) -> PackageFile:
        """Return the newest file for a requirement such as `name` or `name==1.0`, or that of `name @ URL`; raise `PullFailed`.

        A wheel for this machine is preferred to a source distribution. Yanked files are ignored.
        """
        try:
            requirement = Requirement(text)
        except InvalidRequirement as problem:
            raise PullFailed(f"{text!r} is neither a known model, nor a path, nor a requirement such as NAME==VERSION: {problem}") from None
        name = canonicalize_name(requirement.name)
        try:
            if requirement.url is not None:
                return _file_at(requirement.url, name)
            files = [file for file in self._files(name) if requirement.specifier.contains(file.version)]
        except ValueError as problem:  # of urllib
            raise PullFailed(f"{text} has an invalid address, or pip's settings have one ({problem}): see `pip config list`") from None
        if not files:
            where = ", ".join(map(_host, (*self.indexes, *self.links))) or "no index: pip's setting no-index is on"
            raise PullFailed(f"No file of {text} was found on {where}: check name and version, and pip's settings (`pip config list`)")
        return max(files, key=lambda file: (file.version, file.name.endswith(".whl")))

    def _files(self, name: str) -> Iterator[PackageFile]:
        for index in self.indexes:
            yield from self._page(f"{index.rstrip('/')}/{name}/", name, optional=True)
        for link in self.links:
            if (folder := _local(link)) is None:
                yield from self._page(link, name)
            elif folder.is_dir():
                yield from (file for each in sorted(folder.iterdir()) if (file := _package_file(each.name, str(each), None, name)))

    def _page(self, url: str, name: str, *, optional: bool = False) -> Iterator[PackageFile]:
        """Yield the files of a package on a page; a missing page that is `optional` has none."""
        links: Iterable[Link]
        if (folder := _local(url)) is not None:
            page = folder / "index.html"
            links = _anchors(page.read_text(encoding="utf-8")) if page.is_file() else ()
            url = page.absolute().as_uri()
        else:
            url, links = self._request(url, optional=optional)
        for filename, link, sha256 in links:
            with contextlib.suppress(ValueError):  # an invalid address
                if (file := _package_file(filename, urljoin(url, link), sha256, name)) is not None:
                    yield file

    def _request(self, url: str, *, optional: bool) -> tuple[str, Iterable[Link]]:
        """Return the address of a page after redirections, and its links."""
        try:
            with self.connections.client(url) as client:
                response = client.get(url, headers={"Accept": ACCEPT})
        except (httpx.RequestError, httpx.InvalidURL) as problem:
            raise PullFailed(
                f"{_host(url)} can't be reached ({str(problem) or type(problem).__name__}): check the network, the proxy (HTTPS_PROXY) and "
                "pip's settings (`pip config list`), then pull again"
            ) from None
        if response.status_code == 404 and optional:
            return url, ()
        if response.status_code >= 400:
            raise PullFailed(f"{_host(url)} responded with status {response.status_code}: check pip's settings (`pip config list`)")
        if "json" not in response.headers.get("Content-Type", ""):
            return str(response.url), _anchors(response.text)
        try:
            files: list[dict[str, Any]] = response.json()["files"]
            found = [(each["filename"], each["url"], (each.get("hashes") or {}).get("sha256")) for each in files if not each.get("yanked")]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise PullFailed(f"{_host(url)} sent an invalid list of files: check pip's settings (`pip config list`)") from None
        return str(response.url), found


def _file_at(url: str, name: str) -> PackageFile:
    """Return the file of the package `name` at an address; raise `PullFailed`."""
    filename, address, sha256 = _link(url)
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise PullFailed(f"{shown(url)} can't be read: give an address that begins with https://, http:// or file://")
    file = _package_file(filename, address, sha256, name)
    if file is None:
        raise PullFailed(
            f"{filename or url} is not a wheel of {name} for this machine, and not a source distribution: check name and address"
        )
    return file


def pip_settings() -> Mapping[str, str]:
    """Return pip's settings by name, without those of other commands than `download`."""
    done = _pip("config", "list")
    found = [match for line in done.stdout.splitlines() if (match := SETTING.fullmatch(line))]
    settings = {match["name"]: str(ast.literal_eval(match["value"])) for each in SECTIONS for match in found if match["section"] == each}
    if done.returncode != 0:  # an environment without pip
        settings |= {name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name.startswith("PIP_")}
    return settings


def default_index() -> str:
    """Return the address of pip's default index; raise `PullFailed` without pip."""
    found = DEFAULT.search(_pip("download", "--help").stdout)
    if found is None:
        raise PullFailed(
            f"The package index is unknown, because {sys.executable} has no pip: install it with `{sys.executable} -m ensurepip` "
            "(under uv: `uv pip install pip`), or set PIP_INDEX_URL"
        )
    return found[1]


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)


def _local(url: str) -> Path | None:
    """Return the path of a local address, or None."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _anchors(page: str) -> Iterator[Link]:
    """Yield the file name, link and hash of each file on an HTML page that is not yanked."""
    parser = _Anchors()
    parser.feed(page)
    for link in parser.links:
        with contextlib.suppress(ValueError):  # an invalid address
            yield _link(link)


def _link(url: str) -> Link:
    """Return the file name, address and hash of a link."""
    address, _, fragment = url.partition("#")
    sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
    return unquote(urlsplit(address).path.rpartition("/")[2]), address, sha256


class _Anchors(HTMLParser):
    """Parser of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        found = dict(attributes)
        if tag == "a" and (link := found.get("href")) and "data-yanked" not in found:
            self.links.append(link)


def _package_file(filename: str, url: str, sha256: str | None, name: str) -> PackageFile | None:
    """Return a file of the package `name` that suits this machine, or None."""
    if Path(filename).name != filename or not filename.endswith((".whl", ".zip", ".tar.gz")):  # a path would leave the folder of downloads
        return None
    try:
        if filename.endswith(".whl"):
            package, version, _, tags = parse_wheel_filename(filename)
            if tags.isdisjoint(sys_tags()):
                return None
        else:
            package, version = parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None
    return PackageFile(filename, version, url, sha256) if package == name else None


def _host(url: str) -> str:
    """Return the host of an address, which may contain a password, or a path."""
    return urlsplit(url).hostname or url
