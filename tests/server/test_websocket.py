"""The WebSocket of a real stand-alone server."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from openruntime_jupyter.schemas.base import epoch
from tests.fits import must_be, pointed
from tests.server.conftest import error_of
from tests.support import STANDALONE, TOKEN, Server, running_server, slowness

QUICK = {"size": 8, "iterations": 1}
HANDSHAKE = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@contextlib.contextmanager
def listening(server: Server, query: str = "") -> Iterator[ClientConnection]:
    with connect(server.ws_url + query, additional_headers=server.headers, proxy=None, max_size=None) as connection:
        yield connection


def read(connection: ClientConnection, seconds: float = 60.0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(connection.recv(timeout=seconds))
    must_be(pointed("components", "schemas", "ServerMessage"), told, "a message of the WebSocket")
    return told


def read_until(connection: ClientConnection, wanted: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> list[dict[str, Any]]:
    """Return all messages up to the first matching one."""
    deadline = time.monotonic() + seconds
    found = []
    while True:
        found.append(read(connection, max(0.1, deadline - time.monotonic())))
        if wanted(found[-1]):
            return found


def until_silence(connection: ClientConnection, seconds: float) -> list[dict[str, Any]]:
    """Return all messages until none arrives for the given time."""
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(read(connection, seconds))
    return found


def ended(task_id: str) -> Callable[[dict[str, Any]], bool]:
    terminal = ("completed", "failed", "cancelled", "timed_out", "interrupted")
    return lambda told: told["type"] == "task_update" and told["data"]["task_id"] == task_id and told["data"]["status"] in terminal


def test_websocket_sends_connected_then_task_states(standalone: Server) -> None:
    with listening(standalone) as connection:
        greeting = read(connection)
        assert greeting["type"] == "connected"
        assert greeting["message"] == "Connected to OpenRuntime WebSocket"
        assert greeting["timestamp"].endswith("Z")
        task = standalone.submit("matrix_multiply", QUICK)
        told = read_until(connection, ended(task["task_id"]))
    last = told[-1]["data"]
    assert last["status"] == "completed"
    assert isinstance(last["execution_time"], float)
    ids = [greeting["id"], *(message["id"] for message in told)]
    assert ids == sorted(ids)


def test_heartbeat_has_current_metrics(standalone: Server) -> None:
    with listening(standalone) as connection:
        beats = [read_until(connection, lambda told: told["type"] == "heartbeat")[-1] for _ in range(2)]
    beat = beats[0]
    assert (epoch(beats[1]["timestamp"]) or 0) - (epoch(beat["timestamp"]) or 0) > 4
    assert {"gpu_utilization", "memory_usage", "active_tasks"} <= set(beat["metrics"])
    assert beat["timestamp"].endswith("Z")


def test_reconnect_with_since_misses_nothing(standalone: Server) -> None:
    with listening(standalone) as connection:
        read(connection)
        task = standalone.submit("matrix_multiply", QUICK)
        last = read_until(connection, ended(task["task_id"]))[-1]["id"]
    missed = [standalone.submit("matrix_multiply", QUICK)["task_id"] for _ in range(5)]
    with listening(standalone, f"?since={last}") as connection:
        greeting = read(connection)
        assert (greeting["type"], greeting["gap"], greeting["id"]) == ("connected", False, last)
        told = read_until(connection, ended(missed[-1]))
        again = [message["data"]["task_id"] for message in told if message["data"]["status"] == "completed"]
        assert again == missed
        assert all(message["id"] > last for message in told)
        following = standalone.submit("matrix_multiply", QUICK)["task_id"]
        assert read_until(connection, ended(following))[-1]["id"] > told[-1]["id"]


def test_late_reconnect_reports_gap(standalone: Server) -> None:
    for since in (1, 2**52):
        with listening(standalone, f"?since={since}") as connection:
            greeting = read(connection)
            assert greeting["gap"] is True
            task = standalone.submit("matrix_multiply", QUICK)
            assert read_until(connection, ended(task["task_id"]))[-1]["id"] >= greeting["id"]


def test_invalid_since_is_rejected_before_upgrade(standalone: Server) -> None:
    with pytest.raises(InvalidStatus) as caught, listening(standalone, "?since=yesterday"):
        pass
    assert caught.value.response.status_code == 422


def test_topics_are_subscribed_by_message(standalone: Server) -> None:
    with listening(standalone) as connection:
        read(connection)
        connection.send(json.dumps({"type": "subscribe", "topics": ["metrics", "task_output"]}))
        answer = read_until(connection, lambda told: told["type"] == "subscribed")[-1]
        assert answer["topics"] == ["metrics", "task_output", "task_update"]
        soon, started = 6 * slowness(), time.monotonic()
        for _ in range(3):
            metrics = read_until(connection, lambda told: told["type"] == "metrics")[-1]
        assert time.monotonic() - started < soon
        assert {"gpu_utilization", "memory_usage", "active_tasks"} <= set(metrics["metrics"])
        task = standalone.submit("python", {"code": "print('hello')"})
        output = read_until(connection, lambda told: told["type"] == "task_output")[-1]
        assert output["data"]["task_id"] == task["task_id"]
        connection.send(json.dumps({"type": "unsubscribe", "topics": ["metrics", "task_output", "task_update"]}))
        assert read_until(connection, lambda told: told["type"] == "subscribed")[-1]["topics"] == []
        standalone.submit("matrix_multiply", QUICK)
        assert [told["type"] for told in until_silence(connection, 1.5)] in ([], ["heartbeat"])


@pytest.mark.parametrize("query", ["?topics=task_output,task_progress", "?topics=task_output&topics=task_progress"])
def test_topics_of_handshake_are_subscribed_from_first_message(standalone: Server, query: str) -> None:
    with listening(standalone, query) as connection:
        # Before any message is read, so that a subscription by message would miss the output.
        task = standalone.submit("python", {"code": "print('hello')"})
        assert read(connection)["topics"] == ["task_output", "task_progress", "task_update"]
        output = read_until(connection, lambda told: told["type"] == "task_output")[-1]
        assert output["data"]["task_id"] == task["task_id"]


def test_unknown_topic_of_handshake_is_rejected_before_upgrade(standalone: Server) -> None:
    with pytest.raises(InvalidStatus) as caught, listening(standalone, "?topics=everything"):
        pass
    assert caught.value.response.status_code == 422


def test_output_has_same_shape_as_over_http(standalone: Server) -> None:
    code = "print('hello')\ndisplay(3)"
    with listening(standalone, "?topics=task_output") as connection:
        task = standalone.submit("python", {"code": code})
        told = read_until(connection, ended(task["task_id"]))
    items = [item for message in told if message["type"] == "task_output" for item in message["data"]["items"]]
    assert items == standalone.get(f"/tasks/{task['task_id']}/output")["items"]


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "null",
        '{"type": "subscribe", "topics": []}',
        '{"type": "subscribe", "topics": ["everything"]}',
        '{"type": "shout", "topics": ["metrics"]}',
        '{"type": "subscribe", "topics": ["metrics"], "more": 1}',
        '{"type": "subscribe", "topics": [' + ", ".join(['"metrics"'] * 21) + "]}",
        "[" * 50_000,
        b"\xff\x00",
    ],
)
def test_invalid_message_gets_error_and_connection_stays(standalone: Server, said: str | bytes) -> None:
    with listening(standalone) as connection:
        read(connection)
        connection.send(said)
        assert read_until(connection, lambda told: told["type"] == "error")[-1]["error"]
        connection.send(json.dumps({"type": "subscribe", "topics": ["task_update"]}))
        assert read_until(connection, lambda told: told["type"] == "subscribed")


def test_too_long_message_closes_connection(standalone: Server) -> None:
    with listening(standalone) as connection:
        read(connection)
        connection.send("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            read_until(connection, lambda told: False)
    assert standalone.get("/health")["status"] == "healthy"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Connection": "keep-alive"}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Version": "12"}, 426),
    ],
)
def test_invalid_handshake_returns_envelope(jupyter: Server, changed: dict[str, str], status: int) -> None:
    told = jupyter.request("GET", "/ws", headers={**HANDSHAKE, **changed})
    error_of(told, status)
    assert told.headers.get("Sec-WebSocket-Version") == ("13" if status == 426 else None)


class Deaf(contextlib.AbstractContextManager["Deaf"]):
    """Client that connects and then stops reading, with the smallest possible receive buffer."""

    def __init__(self, server: Server, *topics: str) -> None:
        place = urlsplit(server.url)
        self.socket = socket.socket()
        # Before the connection, because its window is agreed then.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(60)
        self.socket.connect((place.hostname, place.port or 80))
        headers = {"Host": place.netloc, "Authorization": f"token {server.token}", **HANDSHAKE}
        lines = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        content = json.dumps({"type": "subscribe", "topics": topics}).encode()
        self.socket.sendall(struct.pack("!BB4x", 0x81, 0x80 | len(content)) + content)

    def close_frame(self) -> tuple[int, str]:
        """Read everything, and return code and reason of the close frame."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                data += piece
        found = _last_close(data)
        assert found is not None, f"no close frame in {len(data)} bytes"
        return found

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _last_close(data: bytearray) -> tuple[int, str] | None:
    """Return the close frame in the data after the handshake, if there is one."""
    at = data.find(b"\r\n\r\n") + 4
    while at + 2 <= len(data):
        opcode, size = data[at] & 0x0F, data[at + 1] & 0x7F
        at += 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        if opcode == 8 and at + size <= len(data):
            return int.from_bytes(data[at : at + 2], "big"), data[at + 2 : at + size].decode()
        at += size
    return None


def flood(server: Server, number: int) -> None:
    """Cause many events by submitting and cancelling tasks in a blocked queue."""
    for _ in range(number):
        server.submit("matrix_multiply", {"size": 64, "iterations": 1}, wait=False, name="x" * 200)


@pytest.mark.timeout(400)
def test_stalled_clients_use_little_memory_and_delay_none(tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE, token=TOKEN) as server, contextlib.ExitStack() as stack:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        for _ in range(5):
            stack.enter_context(Deaf(server, "task_output"))
        connection = stack.enter_context(listening(server))
        # This fills the socket buffers of each client, so that further events wait in the server.
        for _ in range(6):
            server.submit("python", {"code": "print('x' * 900_000)"})
        delays, slow = [], slowness()
        for _ in range(8):
            flood(server, 100)
            task = server.submit("matrix_multiply", QUICK, priority=10)
            answered = time.monotonic()
            read_until(connection, ended(task["task_id"]))
            delays.append(time.monotonic() - answered)
        grown = process.memory_info().rss - before
        assert grown < 60e6, f"the server has grown by {grown / 1e6:.0f} MB"
        assert sorted(delays)[len(delays) // 2] < 0.5 * slow, delays
        server.kill()  # rather than end the flood


def test_disconnected_client_gets_close_reason(tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE, token=TOKEN) as server, Deaf(server, "task_output") as deaf:
        # This fills the socket buffers.
        for _ in range(6):
            server.submit("python", {"code": "print('x' * 900_000)"})
        many = [{"operation": "matrix_multiply", "parameters": QUICK, "priority": 1}] * 1500
        assert server.request("POST", "/tasks/batch", json={"tasks": many}).status_code == 202
        code, reason = deaf.close_frame()
        assert code == 1013
        assert "since" in reason
        server.kill()  # rather than end the flood


def test_stopping_server_closes_websocket(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_server(tmp_path_factory.mktemp("goodbye"), STANDALONE, token=TOKEN) as server, listening(server) as connection:
        read(connection)
        server.stop()
        with pytest.raises(ConnectionClosed) as caught:
            read_until(connection, lambda told: False)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
