"""Finders of hosts, and the ways to their agents."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from openruntime_jupyter.engines.hosts.link import ByteStream

RESERVED = re.compile(r"auto|gpu|cpu|remote|device_[0-9]+")
"""Names of queues that are not those of hosts."""


def unreserved(name: str) -> str:
    """Return the name of a host, which becomes that of its queue; `host-gpu` for `gpu`."""
    return f"host-{name}" if RESERVED.fullmatch(name) else name


class InvalidHosts(ValueError):
    """Settings of hosts that can't be used; the message says what to change."""


class HostUnusable(Exception):
    """The host has no agent that can be reached; `remedy` is what to do on that host, None if that is unknown."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class HostUnreachable(OSError):
    """The host can't be reached now; `remedy` is what to do if it stays so, None if that is unknown."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Way(Protocol):
    """Way to the agent of one host."""

    name: str
    """Name of the host, unique in its finder: the first part of the ids of its devices."""
    address: str
    """Address for users, such as `ssh me@mac2.local` or `tls://10.0.0.7:40123`."""

    async def connect(self) -> ByteStream:
        """Connect to the agent. Raises `HostUnusable`, or `OSError` for a connection that may work later."""

    async def connect_for_arrays(self, folder: str) -> ByteStream:
        """Open a second connection, for files in `folder`, the agent's own. Raises `HostUnusable` or `OSError`."""


@dataclass(frozen=True, slots=True)
class HostsSetup:
    """Other hosts of a runtime, and whether this machine runs tasks as well (`local`).

    The agent of a host ends its tasks `silence` seconds after the last ping, and the runtime counts the host as lost after `lost` seconds,
    which must be longer. Unless `share_folders`, arrays are sent even to hosts that share their folder.
    """

    finder: Finder
    local: bool = True
    silence: float = 10.0
    lost: float = 15.0
    share_folders: bool = True


class Finder(Protocol):
    """Source of hosts. Every method is called on the runtime's loop."""

    problem: str | None
    """Why hosts are missing, for `/health`; None without a problem."""

    async def watch(self, found: Callable[[Way], None], gone: Callable[[str, str], None]) -> None:
        """Report hosts until cancelled.

        Parameters
        ----------
        found : called with the way to a host, again where its address has changed
        gone : called with the name of a host that has left and the reason, such as "it left the Dask cluster"
        """

    def hold(self, name: str, busy: bool) -> None:
        """Note that tasks run on this host, or no more, so that whoever provides it does not end it under them."""

    def demand(self, pending: int) -> None:
        """Note the number of pending tasks, for finders that can start hosts."""

    async def close(self) -> None:
        """Leave; never raises."""
