from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from openruntime_jupyter.server.auth.peer_credentials import UNKNOWABLE, is_loopback, uid_of_peer

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def connected(family: int, listen: str, reach: str, reach_family: int | None = None) -> tuple[socket.socket, socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((listen, 0))
        listener.listen()
        client = socket.socket(reach_family or family, socket.SOCK_STREAM)
        client.connect((reach, listener.getsockname()[1]))
        server, _ = listener.accept()
    return server, client


@linux
@pytest.mark.parametrize(
    ("family", "listen", "reach", "reach_family"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", socket.AF_INET),
        (socket.AF_INET6, "::1", "::1", socket.AF_INET6),
        (socket.AF_INET, "127.0.0.1", "::ffff:127.0.0.1", socket.AF_INET6),
    ],
)
def test_the_user_at_the_other_end_is_known(family: int, listen: str, reach: str, reach_family: int) -> None:
    try:
        server, client = connected(family, listen, reach, reach_family)
    except OSError as problem:
        pytest.skip(f"no IPv6 here: {problem}")
    with server, client:
        assert uid_of_peer(server) == os.getuid()


@linux
def test_what_is_left_of_a_closed_connection_counts_for_nobody() -> None:
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server:
        client.close()
        assert uid_of_peer(server) is None


@linux
def test_the_user_is_read_from_the_row_of_the_peer_not_from_our_own(tmp_path: Path) -> None:
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server, client:
        lines = Path("/proc/net/tcp").read_text().splitlines()
        at = next(number for number, line in enumerate(lines) if line.split()[1].endswith(f":{client.getsockname()[1]:04X}"))
        fields = lines[at].split()
        fields[7] = "12345"
        lines[at] = " ".join(fields)
        (tmp_path / "tcp").write_text("\n".join(lines))
        (tmp_path / "tcp6").write_text("head\n")
        assert uid_of_peer(server, tmp_path) == 12345


@linux
def test_a_system_that_hides_its_table_lets_nobody_in(tmp_path: Path) -> None:
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server, client:
        assert uid_of_peer(server, tmp_path) is None


def test_elsewhere_nobody_can_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server, client:
        assert uid_of_peer(server) == UNKNOWABLE


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_local(address: str, local: bool) -> None:
    assert is_loopback(address) is local
