"""Test the guard against connections to other machines."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.loopback import RemoteConnection

ELSEWHERE = "192.0.2.1"
"""Unassigned address, reserved for documentation by RFC 5737."""


@pytest.mark.parametrize("way", ["connect", "connect_ex"])
def test_connection_to_another_machine_is_rejected(way: str) -> None:
    with socket.socket() as connection, pytest.raises(RemoteConnection, match=ELSEWHERE):
        getattr(connection, way)((ELSEWHERE, 9))


async def test_connection_of_event_loop_is_rejected() -> None:
    with pytest.raises(RemoteConnection):
        await asyncio.wait_for(asyncio.open_connection(ELSEWHERE, 9), 30)


def test_local_connection_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=30):
        pass
