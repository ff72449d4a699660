from __future__ import annotations

import asyncio
import socket

import pytest

from tests.loopback import ReachedBeyond

ELSEWHERE = "192.0.2.1"
"""An address that RFC 5737 keeps for documentation: nobody has it."""


@pytest.mark.parametrize("way", ["connect", "connect_ex"])
def test_a_test_that_connects_to_another_machine_fails_before_it_does(way: str) -> None:
    with socket.socket() as connection, pytest.raises(ReachedBeyond, match=ELSEWHERE):
        getattr(connection, way)((ELSEWHERE, 9))


def test_so_does_one_whose_event_loop_connects() -> None:
    async def reach() -> None:
        await asyncio.open_connection(ELSEWHERE, 9)

    with pytest.raises(ReachedBeyond):
        asyncio.run(asyncio.wait_for(reach(), 30))


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=30):
        pass
