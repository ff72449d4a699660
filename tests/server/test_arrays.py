"""Arrays over HTTP on a real server: upload, download, ranges, errors, aborted transfers and memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import numpy as np
import psutil
import pytest
import safetensors.numpy
from jupyter_server.serverapp import ServerApp

from openruntime_jupyter.arrays import blocks, conversion
from openruntime_jupyter.arrays.array_layout import Layout
from openruntime_jupyter.client import arrays as client_arrays
from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.runtime.tasks.submission import Caller
from openruntime_jupyter.schemas.endpoints import DELETE_ARRAY, GET_ARRAY
from openruntime_jupyter.schemas.tasks import TaskRequest
from openruntime_jupyter.schemas.values import LEASE_HEADER, LEASED
from openruntime_jupyter.server.http import base
from tests.server.conftest import error_of, raw_request, started
from tests.support import STANDALONE, TOKEN, Server, running_server, wait_until

SAFETENSORS = "application/vnd.safetensors"
MB = 1_000_000
HUGE = 512 << 20
"""Size in bytes of an array that must not be loaded into the server's memory. Limited by the memory of CI."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {"OpenRuntimeApp": {"array_bytes": 3 * HUGE, "cpu_slots": 1}}
    with running_server(tmp_path_factory.mktemp("arrays"), STANDALONE, config=config) as running:
        yield running


def put(server: Server, name: str, content: Any, **headers: str) -> httpx.Response:
    return server.request("PUT", f"/arrays/{name}", content=content, headers={"Content-Type": SAFETENSORS, **headers})


def fetch(server: Server, name: str, **headers: str) -> httpx.Response:
    return server.request("GET", f"/arrays/{name}", headers=headers)


def listed(server: Server) -> dict[str, Any]:
    return {each["id"]: each for each in server.get("/arrays")["arrays"]}


def test_uploaded_array_is_computed_and_downloaded(server: Server) -> None:
    sent = np.arange(12, dtype=np.float32).reshape(3, 4)
    told = put(server, "weights", safetensors.numpy.save({"w": sent}))
    assert told.status_code == 201, told.text
    assert (told.json()["id"], told.json()["shape"], told.json()["dtype"], told.json()["state"]) == ("weights", [3, 4], "float32", "ready")
    task = server.submit("compute", {"expression": "sum(w)", "inputs": {"w": {"array": "weights"}}})
    assert task["result"]["output"]["value"] == 66.0
    answer = fetch(server, "weights")
    assert answer.headers["Content-Type"] == SAFETENSORS
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert (safetensors.numpy.load(answer.content)["array"] == sent).all()
    known = fetch(server, "weights", Accept="application/json").json()
    assert (known["bytes"], known["leases"], known["size"]) == (48, 0, len(answer.content))
    for other in (sent + 1, sent.reshape(4, 3), sent.astype(np.int32)):
        error_of(put(server, "weights", safetensors.numpy.save({"w": other})), 409)
    assert server.request("DELETE", "/arrays/weights").json()["id"] == "weights"
    error_of(fetch(server, "weights"), 404)
    body = {"operation": "compute", "parameters": {"expression": "w", "inputs": {"w": {"array": "weights"}}}}
    assert "weights" in error_of(server.request("POST", "/tasks", json=body), 422)["error"]


@pytest.mark.parametrize("array", [np.array(3, np.float32), np.zeros((0, 3), np.int8)], ids=["scalar", "empty"])
def test_small_and_empty_arrays_are_transferred(server: Server, array: np.ndarray[Any, Any]) -> None:
    assert put(server, "tiny", safetensors.numpy.save({"x": array}), **{"Content-Type": "application/octet-stream"}).status_code == 201
    back = safetensors.numpy.load(fetch(server, "tiny").content)["array"]
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
    server.request("DELETE", "/arrays/tiny")


def test_running_download_keeps_its_data_after_delete(server: Server) -> None:
    backend = HttpBackend(server.url, server.token)

    def send(value: int) -> str:
        sent = np.full(48 * MB, value, np.uint8)
        layout = conversion.layout_of(sent)
        assert layout is not None
        return client_arrays.send(backend, sent, layout)

    first = send(1)
    inode = Path(str(backend.call(GET_ARRAY, first).path)).stat().st_ino
    with server.client.stream("GET", f"{server.url}/arrays/{first}", headers=server.headers) as answer:
        pieces = answer.iter_bytes(MB)
        came = bytearray(next(pieces))
        backend.call(DELETE_ARRAY, first)
        others = [send(2), send(3)]
        assert inode not in {Path(str(backend.call(GET_ARRAY, each).path)).stat().st_ino for each in others}
        for piece in pieces:
            came += piece
    assert (safetensors.numpy.load(bytes(came))["array"] == 1).all()
    wait_until(lambda: inode not in {path.stat().st_ino for path in writing_and_ready(server)}, what="the end of its lease")
    assert {each: backend.call(GET_ARRAY, each).bytes for each in others} == dict.fromkeys(others, 48 * MB)
    for each in others:
        backend.call(DELETE_ARRAY, each)
    backend.close()


def writing_and_ready(server: Server) -> list[Path]:
    """Return the files of arrays, including those that are being deleted."""
    (folder,) = {Path(each["path"]).parent for each in leasing(server, "GET", "/arrays").json()["arrays"]}
    return [path for path in folder.iterdir() if path.suffix in (".part", ".safetensors")]


def leasing(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    return server.request(method, path, headers={LEASE_HEADER: LEASED}, **options)


@pytest.mark.parametrize("leases", [True, False])
def test_file_is_reused_unless_exposed_without_lease(server: Server, leases: bool) -> None:
    told = leasing(server, "POST", "/arrays", json={"shape": [8 * MB], "dtype": "uint8"}).json()
    path = Path(leasing(server, "POST", f"/arrays/{told['id']}/ready").json()["path"])
    inode = path.stat().st_ino
    known = (leasing if leases else Server.request)(server, "GET", "/arrays").json()["arrays"]
    assert str(path) in {each["path"] for each in known}
    assert server.request("DELETE", f"/arrays/{told['id']}").json()["path"] is None
    assert (inode in {free.stat().st_ino for free in (path.parent / blocks.FREE).iterdir()}) == leases


def test_head_of_array_returns_get_headers(server: Server) -> None:
    put(server, "headed", safetensors.numpy.save({"x": np.arange(5000, dtype=np.int32)}))
    whole = fetch(server, "headed")
    told = server.request("HEAD", "/arrays/headed", headers={"Range": "bytes=0-9"})
    assert (told.status_code, told.content) == (200, b"")
    names = ("Content-Type", "Content-Length", "Content-Disposition", "Accept-Ranges", "ETag", "Vary")
    assert {name: told.headers[name] for name in names} == {name: whole.headers[name] for name in names}
    assert int(told.headers["Content-Length"]) == len(whole.content)
    known = server.request("HEAD", "/arrays/headed", headers={"Accept": "application/json"})
    assert (known.status_code, known.headers["Content-Type"], known.content) == (200, "application/json", b"")
    empty = server.request("POST", "/arrays", json={"shape": [2], "dtype": "int8"}).json()
    assert server.request("HEAD", f"/arrays/{empty['id']}").status_code == 409
    # No body was sent, so the connection can be used for another request.
    assert fetch(server, "headed").content == whole.content
    for name in ("headed", empty["id"]):
        assert server.request("DELETE", f"/arrays/{name}").status_code == 200


def test_array_ranges_are_supported(server: Server) -> None:
    put(server, "ranged", safetensors.numpy.save({"x": np.arange(5000, dtype=np.int32)}))
    whole = fetch(server, "ranged")
    size, tag = len(whole.content), whole.headers["ETag"]
    for wanted, first, last in (("0-0", 0, 0), ("100-199", 100, 199), (f"{size - 5}-", size - 5, size - 1), ("-7", size - 7, size - 1),
                                (f"10-{size * 9}", 10, size - 1), (f"-{size * 9}", 0, size - 1)):  # fmt: skip
        part = fetch(server, "ranged", Range=f"bytes={wanted}")
        assert (part.status_code, part.headers["Content-Range"]) == (206, f"bytes {first}-{last}/{size}"), wanted
        assert part.content == whole.content[first : last + 1]
    for wanted in (f"{size}-", "9-3", "-0"):
        part = fetch(server, "ranged", Range=f"bytes={wanted}")
        error_of(part, 416)
        assert part.headers["Content-Range"] == f"bytes */{size}"
    for odd in ("bytes=", "bytes=-", "lines=1-2", "bytes=1-2,5-6", "bytes=a-b"):
        assert fetch(server, "ranged", Range=odd).content == whole.content, "invalid ranges are ignored"
    assert fetch(server, "ranged", Range="bytes=0-9", **{"If-Range": tag}).status_code == 206
    server.request("DELETE", "/arrays/ranged")
    put(server, "ranged", safetensors.numpy.save({"x": np.ones(5000, dtype=np.int32)}))
    assert fetch(server, "ranged", Range="bytes=0-9", **{"If-Range": tag}).status_code == 200, "it is another array now"
    server.request("DELETE", "/arrays/ranged")


def test_matching_etag_returns_304(server: Server) -> None:
    put(server, "cached", safetensors.numpy.save({"x": np.arange(5000, dtype=np.int32)}))
    tag = fetch(server, "cached").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"another", {tag}', "*"):
        for method in ("GET", "HEAD"):
            told = server.request(method, "/arrays/cached", headers={"If-None-Match": known, "Range": "bytes=0-9"})
            assert (told.status_code, told.content, told.headers["ETag"]) == (304, b"", tag), known
    assert fetch(server, "cached", **{"If-None-Match": '"another"'}).status_code == 200
    server.request("DELETE", "/arrays/cached")
    put(server, "cached", safetensors.numpy.save({"x": np.ones(5000, dtype=np.int32)}))
    assert fetch(server, "cached", **{"If-None-Match": tag}).status_code == 200, "it is another array now"
    server.request("DELETE", "/arrays/cached")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", SAFETENSORS),
        ("text/html", SAFETENSORS),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.1, application/vnd.safetensors", SAFETENSORS),
        ("application/vnd.openruntime.envelope+json", "application/vnd.openruntime.envelope+json"),
    ],
)
def test_accept_header_selects_array_format(server: Server, accept: str, kind: str) -> None:
    put(server, "liked", GOOD)
    told = fetch(server, "liked", Accept=accept)
    assert (told.status_code, told.headers["Content-Type"]) == (200, kind)
    server.request("DELETE", "/arrays/liked")


def test_local_program_writes_and_reads_array_file(server: Server) -> None:
    sent = np.arange(1000, dtype=np.int64)
    answer = server.request("POST", "/arrays", json={"shape": [1000], "dtype": "int64"})
    assert answer.status_code == 201
    told = answer.json()
    assert answer.headers["Location"] == f"/arrays/{told['id']}"
    error_of(fetch(server, told["id"]), 409)
    layout = conversion.layout_of(sent)
    assert layout is not None
    descriptor = os.open(told["path"], os.O_RDWR)
    conversion.fill(descriptor, layout, sent)
    os.close(descriptor)
    ready = server.request("POST", f"/arrays/{told['id']}/ready").json()
    assert ready["state"] == "ready"
    assert (conversion.view(ready["path"], "x") == sent).all()
    assert not Path(ready["path"]).stat().st_mode & 0o077
    assert not Path(ready["path"]).parent.stat().st_mode & 0o077
    error_of(server.request("POST", f"/arrays/{told['id']}/ready"), 409)
    server.request("DELETE", f"/arrays/{told['id']}")


def test_put_fills_allocated_array_of_same_type(server: Server) -> None:
    told = server.request("POST", "/arrays", json={"shape": [3], "dtype": "float32", "kind": "mlx"}).json()
    assert "float32[3]" in error_of(put(server, told["id"], safetensors.numpy.save({"x": np.zeros(4, np.float32)})), 422)["error"]
    answer = put(server, told["id"], safetensors.numpy.save({"x": np.ones(3, np.float32)}))
    assert (answer.status_code, answer.json()["kind"]) == (201, "mlx")
    server.request("DELETE", f"/arrays/{told['id']}")


GOOD = safetensors.numpy.save({"x": np.arange(100, dtype=np.float32)})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "safetensors header"),
        (b"\xff" * 100, "safetensors"),
        ((10).to_bytes(8, "little") + b"{not json}", "header"),
        (GOOD[:-1], "1 bytes before"),
        (GOOD + b"x", "more bytes than the array"),
        (GOOD[:50], "safetensors header"),
        (safetensors.numpy.save({"x": np.zeros(1), "y": np.zeros(1)}), "2 arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_safetensors_body_is_rejected_and_deleted(server: Server, content: bytes, problem: str) -> None:
    before = server.get("/arrays")["total_bytes"]
    assert problem in error_of(put(server, "bad", content), 422)["error"]
    wait_until(lambda: server.get("/arrays")["total_bytes"] == before, what="the room to be given back")
    assert "bad" not in listed(server)


def test_array_errors_name_the_problem(server: Server) -> None:
    assert "content type" in error_of(put(server, "x", GOOD, **{"Content-Type": "application/json"}), 400)["error"]
    assert "compressed" in error_of(put(server, "x", GOOD, **{"Content-Encoding": "gzip"}), 400)["error"]
    for name in ("arr_mine", "a%20b", "..%2Fx", "x" * 101, ".x"):
        assert "name" in error_of(put(server, name, GOOD), 422)["error"]
    for body, field in (
        ({"shape": [-1], "dtype": "int8"}, "shape.0"),
        ({"shape": [True], "dtype": "int8"}, "shape.0"),
        ({"shape": [1], "dtype": "text"}, "dtype"),
        ({"shape": [2**60], "dtype": "int8"}, "array"),
        ({"shape": [1] * 33, "dtype": "int8"}, "shape"),
    ):
        assert error_of(server.request("POST", "/arrays", json=body), 422)["data"]["details"][0]["field"] == field
    error_of(server.request("POST", "/arrays", json={"shape": [10**12], "dtype": "int8"}), 422)


def upload(server: Server, name: str, content: bytes, sent: int) -> socket.socket:
    """Begin an upload with the first bytes of its content."""
    sock = raw_request(server, "PUT", f"/arrays/{name}", f"Content-Type: {SAFETENSORS}", f"Content-Length: {len(content)}")
    sock.sendall(content[:sent])
    return sock


def status_of(sock: socket.socket) -> int:
    """Return the status of the response."""
    line = sock.makefile("rb").readline()
    return int(line.split()[1])


def heard(sock: socket.socket) -> bytes:
    """Return all data until the server closes the connection."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize(
    ("length", "token", "status"), [(100, "wrong", b"403"), (100 * HUGE, TOKEN, b"413")], ids=["stranger", "too large"]
)
def test_unauthorized_upload_is_rejected_before_body(server: Server, length: int, token: str, status: bytes) -> None:
    headers = (f"Content-Type: {SAFETENSORS}", f"Content-Length: {length}", "Expect: 100-continue")
    with raw_request(server, "PUT", "/arrays/early", *headers, token=token) as sock:
        answer = heard(sock)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"100 (Continue)" not in answer
    assert b'"status":"error"' in answer


def test_chunked_upload_is_accepted(server: Server) -> None:
    pieces = [GOOD[index : index + 17] for index in range(0, len(GOOD), 17)]
    assert put(server, "pieces", iter(pieces)).status_code == 201
    assert safetensors.numpy.load(fetch(server, "pieces").content)["array"].sum() == 4950
    server.request("DELETE", "/arrays/pieces")


def test_aborted_upload_is_deleted(server: Server) -> None:
    before = server.get("/arrays")["total_bytes"]
    content = safetensors.numpy.save({"x": np.ones(2 * MB, np.float32)})
    with upload(server, "half", content, len(content) // 2):
        wait_until(lambda: "half" in listed(server), what="the upload to begin")
        assert listed(server)["half"]["state"] == "writing"
        assert listed(server)["half"]["expires_at"] is None
        error_of(put(server, "half", GOOD), 409)
    wait_until(lambda: "half" not in listed(server), what="the end of what was half sent")
    assert server.get("/arrays")["total_bytes"] == before
    assert put(server, "half", GOOD).status_code == 201
    server.request("DELETE", "/arrays/half")


@pytest.mark.usefixtures("http_server")
async def test_stalled_upload_is_rejected_and_freed(
    jp_serverapp: ServerApp, jp_http_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "STALLED_SECONDS", 0.2)
    app = await started(jp_serverapp, tmp_path / "data")
    runtime = await app.ready()
    reader, writer = await asyncio.open_connection("127.0.0.1", jp_http_port)
    head = (
        f"PUT {app.url_path}/arrays/stalled HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: token {jp_serverapp.identity_provider.token}\r\n"
    )
    writer.write(f"{head}Content-Type: {SAFETENSORS}\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD[:-1])
    answer = await reader.read()  # ends when the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"status":"error"' in answer
    writer.close()

    async def given_back() -> None:
        while runtime.arrays.used_bytes:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(given_back(), 30.0)
    await app.stop_extension()


@pytest.mark.usefixtures("http_server")
async def test_stalled_download_is_closed_and_freed(
    jp_serverapp: ServerApp, jp_http_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "STALLED_SECONDS", 0.2)
    app = await started(jp_serverapp, tmp_path / "data")
    runtime = await app.ready()
    pickled = base64.b64encode(cloudpickle.dumps((lambda: b"x" * 64 * MB, (), {}))).decode()
    task = await runtime.submit(TaskRequest(operation="call", parameters={"pickled": pickled}), Caller())
    await runtime.tasks.wait(task.task_id)
    payload, _ = await runtime.tasks.payload(task.task_id)
    room = await runtime.arrays.allocate(Layout((64 * MB,), "uint8", "numpy"), None)
    array = await runtime.arrays.ready(room.id)

    async def stall(path: str, file: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", jp_http_port)
        head = f"GET {app.url_path}/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: token {jp_serverapp.identity_provider.token}"
        writer.write(f"{head}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        while file in [each.path for each in psutil.Process().open_files()]:
            await asyncio.sleep(0.01)
        came = 0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(MB):
                came += len(piece)
        assert came < 64 * MB
        writer.close()

    await asyncio.wait_for(stall(f"arrays/{array.id}", str(array.path)), 60.0)
    await asyncio.wait_for(stall(f"tasks/{task.task_id}/payload", str(payload)), 60.0)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    await app.stop_extension()


def test_running_upload_cannot_be_marked_ready(server: Server) -> None:
    content = safetensors.numpy.save({"x": np.full(2 * MB, 7, np.uint8)})
    half = len(content) // 2
    with upload(server, "sending", content, half) as sock:
        wait_until(lambda: "sending" in listed(server), 30.0, "the upload to begin")
        assert "sending" in error_of(server.request("POST", "/arrays/sending/ready"), 409)["error"]
        error_of(fetch(server, "sending"), 409)
        sock.sendall(content[half:])
        wait_until(lambda: listed(server)["sending"]["state"] == "ready", 30.0, "the end of the upload")
    assert fetch(server, "sending").content[-2 * MB :] == b"\x07" * 2 * MB
    server.request("DELETE", "/arrays/sending")


def test_repeated_upload_returns_existing_array(server: Server) -> None:
    content = safetensors.numpy.save({"x": np.arange(2 * MB, dtype=np.float32)})
    first = put(server, "twice", content)
    again = put(server, "twice", content)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["created_at"] == first.json()["created_at"]
    with upload(server, "twice", content, len(content) // 2):
        pass  # a repetition that breaks off leaves the array
    error_of(put(server, "twice", content[:-4]), 422)
    error_of(put(server, "twice", content[:-4] + b"\x00\x00\x00\x00"), 409)
    assert fetch(server, "twice").content[-8 * MB :] == content[-8 * MB :]
    server.request("DELETE", "/arrays/twice")
    assert put(server, "twice", content).status_code == 201
    server.request("DELETE", "/arrays/twice")


@pytest.mark.parametrize("first_ends", ["complete", "broken off"])
def test_upload_of_deleted_array_keeps_new_array_with_same_id(server: Server, first_ends: str) -> None:
    def sent(value: int) -> bytes:
        return safetensors.numpy.save({"x": np.full(2 * MB, value, np.uint8)})

    half = len(sent(1)) // 2
    first = upload(server, "again", sent(1), half)
    wait_until(lambda: "again" in listed(server), 30.0, "the first upload to begin")
    assert server.request("DELETE", "/arrays/again").is_success
    with upload(server, "again", sent(2), half) as second:
        wait_until(lambda: "again" in listed(server), 30.0, "the second upload to begin")
        if first_ends == "complete":
            first.sendall(sent(1)[half:])
            assert status_of(first) == 409
        first.close()
        error_of(server.request("POST", "/arrays/again/ready"), 409)
        second.sendall(sent(2)[half:])
        assert status_of(second) == 201
    assert set(fetch(server, "again").content[-2 * MB :]) == {2}
    server.request("DELETE", "/arrays/again")
    assert "A background task of OpenRuntime failed" not in server.tail()


def test_missing_array_file_is_reported_and_freed(server: Server) -> None:
    told = server.request("POST", "/arrays", json={"shape": [10], "dtype": "uint8"}).json()
    Path(told["path"]).unlink()
    problem = error_of(put(server, told["id"], safetensors.numpy.save({"x": np.zeros(10, np.uint8)})), 404)
    assert "allocate the array again" in problem["error"]
    assert told["id"] not in listed(server)


def _huge() -> Iterator[bytes]:
    layout = Layout((HUGE // 4,), "float32")
    yield layout.header()
    piece = np.ones(MB, np.float32).tobytes()
    sent = 0
    while sent < layout.nbytes:
        part = piece[: min(len(piece), layout.nbytes - sent)]
        sent += len(part)
        yield part


def test_large_array_is_not_loaded_into_server_memory(server: Server) -> None:
    process = psutil.Process(server.pid)
    put(server, "before", GOOD)  # triggers the imports of the first array
    server.submit("compute", {"expression": "sum(x)", "inputs": {"x": {"array": "before"}}})
    fetch(server, "before")
    server.request("DELETE", "/arrays/before")
    gc.collect()
    most = start = process.memory_info().rss
    began = time.monotonic()

    def looked() -> None:
        nonlocal most
        most = max(most, process.memory_info().rss)

    def sending() -> Iterator[bytes]:
        for number, piece in enumerate(_huge()):
            if number % 8 == 0:
                looked()
            yield piece

    assert put(server, "huge", sending()).status_code == 201
    task = server.submit("mlx_operation", {"function": "min", "args": [{"array": "huge"}]})
    assert task["result"]["output"]["result"]["value"] == 1.0, task
    code = "y = x * 2"
    task = server.submit("python", {"code": code, "inputs": {"x": {"array": "huge"}}, "outputs": ["y"]})
    (made,) = task["result"]["arrays"]
    assert (made["dtype"], made["bytes"]) == ("float32", HUGE)
    got, last = 0, b""
    with server.client.stream("GET", f"{server.url}/arrays/{made['id']}", headers=server.headers, timeout=60) as answer:
        for piece in answer.iter_bytes(1 << 20):
            got, last = got + len(piece), piece
            if got % (16 << 20) < (1 << 20):
                looked()
    looked()
    assert got == int(answer.headers["Content-Length"])
    assert np.frombuffer(last[-8:], np.float32).tolist() == [2, 2]
    assert most - start < 50 * MB, f"{(most - start) / MB:.0f} MB more, after {time.monotonic() - began:.1f} s"
    for name in ("huge", made["id"]):
        server.request("DELETE", f"/arrays/{name}")
