"""Hosts as users name them: destinations of `ssh`, and what `hosts.toml` adds to them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openruntime_jupyter.engines.hosts.finder import InvalidHosts, unreserved
from openruntime_jupyter.environment import default_config_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IPV6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*(?:%[\w.-]+)?"
DESTINATION = re.compile(
    rf"(?:ssh://)?(?:(?P<user>[A-Za-z0-9_][\w.+-]*)@)?(?:(?P<address>{IPV6})|(?:\[(?P<bracketed>{IPV6})\]|(?P<name>[A-Za-z0-9_][\w.-]*))"
    r"(?::(?P<port>\d{1,5}))?)"
)
"""Destination with its parts. No part begins with `-`, which ssh would read as an option."""

ADDRESS = re.compile(rf"{IPV6}|[\d.]+")

VARIABLE = re.compile(r"[A-Za-z_]\w*")

DEFAULT_PYTHON = "python3"


@dataclass(frozen=True)
class SshHost:
    """Host that `ssh` reaches. `python` and `environment` are those of its agent."""

    name: str
    destination: str
    """The host as the settings and `hosts.toml` name it."""
    python: str = DEFAULT_PYTHON
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def login(self) -> tuple[str, ...]:
        """Arguments of ssh for this host. ssh itself takes a port only as an option or in a URL, and there no IPv6 address."""
        parts = _parts(self.destination)
        port, user = parts["port"], parts["user"]
        return (*(("-p", port) if port else ()), f"{user}@{self.host}" if user else self.host)

    @property
    def host(self) -> str:
        """Host name or address."""
        return _host_name(self.destination)

    @property
    def known_host(self) -> str:
        """The host's name in `known_hosts`."""
        port = _parts(self.destination)["port"]
        return f"[{self.host}]:{port}" if port not in (None, "22") else self.host


def default_file() -> Path:
    """Return the path of the user's `hosts.toml`, which need not exist."""
    return default_config_dir() / "hosts.toml"


def ssh_hosts(destinations: Sequence[str], file: Path) -> list[SshHost]:
    """Return the hosts of `destinations` with what `file` says about them. Raises `InvalidHosts`.

    The name of a host is the first part of its host name, or the whole where two hosts share that part or it is an address.
    Names of queues such as `gpu` get the prefix `host-`.
    """
    options = _read(file)
    whole = [_host_name(destination) for destination in destinations]
    short = [name if ADDRESS.fullmatch(name) else name.partition(".")[0] for name in whole]
    for destination, count in Counter(whole).items():
        if count > 1:
            raise InvalidHosts(f"hosts: {destination!r} is there {count} times. Name each machine once")
    names = [first if short.count(first) == 1 else name for first, name in zip(short, whole, strict=True)]
    return [
        _host(unreserved(re.sub(r"[:%]+", "-", name).strip("-") or "host"), destination, options.get(destination, {}), file)
        for name, destination in zip(names, destinations, strict=True)
    ]


def _parts(destination: str) -> dict[str, str | None]:
    match = DESTINATION.fullmatch(destination)
    if match is None:
        raise InvalidHosts(f"hosts: {destination!r} is not a destination of ssh: write HOST, USER@HOST or USER@HOST:PORT")
    return match.groupdict()


def _host_name(destination: str) -> str:
    parts = _parts(destination)
    return parts["address"] or parts["bracketed"] or parts["name"] or ""


def _read(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as opened:
            options: Mapping[str, Any] = tomllib.load(opened)
            return options
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise InvalidHosts(f"{file} can't be read: {problem}") from problem


def _host(name: str, destination: str, options: Any, file: Path) -> SshHost:
    """Return the host with its options of `hosts.toml`, such as `{"python": "~/venv/bin/python", "env": {"HF_HUB_OFFLINE": "1"}}`."""
    where = f'{file}: ["{destination}"]'
    if not isinstance(options, dict):
        raise InvalidHosts(f"{where} must be a table, with python and env")
    unknown = sorted(options.keys() - {"python", "env"})
    if unknown:
        raise InvalidHosts(f"{where} has the unknown key {unknown[0]!r}: use python and env")
    python, variables = options.get("python", DEFAULT_PYTHON), options.get("env", {})
    if not (isinstance(python, str) and python and "\n" not in python):
        raise InvalidHosts(f"{where}: python must be a command or a path")
    if not isinstance(variables, dict) or not all(
        VARIABLE.fullmatch(key) and isinstance(value, str) and "\n" not in value for key, value in variables.items()
    ):
        raise InvalidHosts(f"{where}: env must be a table of variables with texts of one line as values")
    return SshHost(name, destination, python, tuple(sorted(variables.items())))
