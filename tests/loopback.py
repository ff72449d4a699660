"""A guard that keeps the tests' own process on this machine. The servers that they start have no other address than the tests give them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from openruntime_jupyter.server.auth.peer_credentials import is_loopback


class ReachedBeyond(AssertionError):
    """A test was about to connect to another machine."""


def stays_here(connection: socket.socket, address: Any) -> bool:
    """Whether `address` is one of this machine: a path, a loopback address, or `localhost`."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    return host == "localhost" or is_loopback(host)


def guard(patch: pytest.MonkeyPatch) -> None:
    """Have every connection to another machine raise `ReachedBeyond` before anything is sent."""
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect: Any) -> Any:
    """`connect`, looked at first."""

    def guarded(self: socket.socket, address: Any) -> Any:
        if not stays_here(self, address):
            raise ReachedBeyond(f"a test was about to connect to {address}: tests stay on this machine")
        return connect(self, address)

    return guarded
