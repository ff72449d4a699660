"""User id of the process at the other end of a local connection. Only available on Linux."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

ESTABLISHED = "01"
UNKNOWABLE = -1
"""Value for systems that do not report the user id."""


def is_loopback(address: str) -> bool:
    """Return True for a numeric loopback address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def uid_of_peer(connection: socket.socket, tables: Path = Path("/proc/net")) -> int | None:
    """Return the user id of the process at the other end of a local connection.

    Return `UNKNOWABLE` on systems that do not report it, and None if the system does not list the connection. Only connections
    that are still open at the other end count, because the kernel assigns closed ones to root.
    """
    if not sys.platform.startswith("linux"):
        return UNKNOWABLE
    here, there = connection.getsockname()[:2], connection.getpeername()[:2]
    for name, local, remote in _rows(there, here):
        try:
            lines = (tables / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1] == local and fields[2] == remote and fields[3] == ESTABLISHED:
                return int(fields[7])
    return None


def _rows(local: tuple[str, int], remote: tuple[str, int]) -> Iterator[tuple[str, str, str]]:
    """Yield the tables and addresses under which the kernel may list the peer's socket."""
    version = ipaddress.ip_address(local[0].partition("%")[0]).version
    if version == 4:
        yield "tcp", _hexadecimal(local), _hexadecimal(remote)
        # The peer may use an IPv6 socket with a mapped IPv4 address.
        yield "tcp6", *(_hexadecimal((f"::ffff:{address}", port)) for address, port in (local, remote))  # type: ignore[misc]
    else:
        yield "tcp6", _hexadecimal(local), _hexadecimal(remote)


def _hexadecimal(address: tuple[str, int]) -> str:
    """Format an address like /proc/net: 32-bit words in native byte order, then the port."""
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
