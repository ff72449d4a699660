from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from openruntime_jupyter.environment import is_loopback
from openruntime_jupyter.server.auth.identity import UNKNOWABLE, uid_of_peer

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports the user id")


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
def test_peer_user_id_is_found(family: int, listen: str, reach: str, reach_family: int) -> None:
    try:
        server, client = connected(family, listen, reach, reach_family)
    except OSError as problem:
        pytest.skip(f"no IPv6 here: {problem}")
    with server, client:
        assert uid_of_peer(server) == os.getuid()


@linux
def test_closed_connection_has_no_peer_user() -> None:
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server:
        client.close()
        assert uid_of_peer(server) is None


@linux
def test_peer_user_is_read_from_peer_row(tmp_path: Path) -> None:
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
def test_missing_proc_table_gives_no_user(tmp_path: Path) -> None:
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server, client:
        assert uid_of_peer(server, tmp_path) is None


def test_other_systems_return_unknowable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    server, client = connected(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with server, client:
        assert uid_of_peer(server) == UNKNOWABLE


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost", True),
        ("a.localhost", True),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_are_local(address: str, local: bool) -> None:
    assert is_loopback(address) is local
