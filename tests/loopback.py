"""Guard against network connections of the test process. The servers under test only get local addresses."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from openruntime_jupyter.environment import is_loopback


class RemoteConnection(AssertionError):
    """Error for a test that tries to connect to another machine."""


def is_local(connection: socket.socket, address: Any) -> bool:
    """Return True for a local address: a path, a loopback address, or `localhost`."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    return is_loopback(host)


def guard(patch: pytest.MonkeyPatch) -> None:
    """Make every connection to another machine raise `RemoteConnection` before any data is sent."""
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect: Any) -> Any:
    """Return `connect` with a check of the address."""

    def guarded(self: socket.socket, address: Any) -> Any:
        if not is_local(self, address):
            raise RemoteConnection(f"Blocked a connection to {address}: tests may only use local addresses")
        return connect(self, address)

    return guarded
