"""A server that refuses a client's WebSocket closes it with a code and a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.client.transport.watch import DISCONNECTED
from openruntime_jupyter.client.transport.websocket import FIRST_PAUSE
from tests.support import wait_until


@pytest.fixture
def refused() -> Iterator[tuple[str, list[float]]]:
    """URL of a server that refuses every WebSocket, and the times of the attempts."""
    attempts: list[float] = []

    def refuse(connection: ServerConnection) -> None:
        attempts.append(time.monotonic())
        connection.close(4001, "The token is wrong: use the one that the server prints when it starts")

    with serve(refuse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", attempts
        server.shutdown()
        thread.join()


def test_refused_client_gets_reason_and_retries_ever_more_slowly(refused: tuple[str, list[float]]) -> None:
    url, attempts = refused
    received: list[dict[str, Any]] = []
    with HttpBackend(url, "wrong").watch(("task_update",), received.append):
        wait_until(lambda: len(attempts) >= 4, what="four attempts")
    assert "The token is wrong" in next(each["error"] for each in received if each["type"] == DISCONNECTED)
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert pauses[1] > 1.5 * FIRST_PAUSE
    assert pauses[2] > 3 * FIRST_PAUSE
