"""Who is at the other end of a local connection. Linux tells the user id of the process; elsewhere nobody does."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

ESTABLISHED = "01"
UNKNOWABLE = -1
"""What stands for "this system does not tell"."""


def is_loopback(address: str) -> bool:
    """Whether `address`, in numbers, is of this machine alone."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def uid_of_peer(connection: socket.socket, tables: Path = Path("/proc/net")) -> int | None:
    """The user id of the process at the other end of a connection within this machine.

    `UNKNOWABLE` on systems that do not tell, None where the system should tell but knows no such connection. Only a connection
    that is still open at that end counts: the kernel gives what is left of a closed one to root.
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
    """In which table, and under which addresses, the kernel may list the peer's end."""
    version = ipaddress.ip_address(local[0].partition("%")[0]).version
    if version == 4:
        yield "tcp", _hexadecimal(local), _hexadecimal(remote)
        # A program may reach us by an IPv6 socket under a mapped address.
        yield "tcp6", *(_hexadecimal((f"::ffff:{address}", port)) for address, port in (local, remote))  # type: ignore[misc]
    else:
        yield "tcp6", _hexadecimal(local), _hexadecimal(remote)


def _hexadecimal(place: tuple[str, int]) -> str:
    """An address as /proc/net writes it: 32-bit words in the machine's own byte order, then the port."""
    packed = ipaddress.ip_address(place[0].partition("%")[0]).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{place[1]:04X}"
