"""Clients that may change records and not read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from openruntime_jupyter.client.transport.http import HttpBackend
from openruntime_jupyter.errors import NotAllowed
from openruntime_jupyter.schemas.endpoints import CANCEL_TASK
from tests.server.conftest import AUTHORIZER
from tests.support import JUPYTER, Server, running_server

SECRET = "a-value-that-only-readers-see"
NO_READ = {"X-Deny": "read:openruntime"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("write-only")
    (folder / "lib").mkdir()
    (folder / "lib" / "denying.py").write_text(AUTHORIZER)
    config = {"ServerApp": {"authorizer_class": "denying.HeaderAuthorizer"}}
    with running_server(folder, JUPYTER, config=config, paths=[folder / "lib"]) as server:
        yield server


def changed(server: Server, method: str, path: str, **options: Any) -> None:
    response = server.request(method, path, headers=NO_READ, **options)
    assert (response.status_code, response.content) == (204, b""), response.text


def test_changes_of_a_task_show_no_record(server: Server) -> None:
    ended = server.submit("python", {"code": f"print({SECRET!r})"})["task_id"]
    changed(server, "DELETE", f"/tasks/{ended}")
    changed(server, "DELETE", f"/tasks/{ended}", params={"purge": "true"})
    assert server.request("GET", f"/tasks/{ended}").status_code == 404
    running = server.submit("python", {"code": "import time; time.sleep(600)", "inputs": {"secret": SECRET}}, wait=False)["task_id"]
    changed(server, "DELETE", f"/tasks/{running}")
    assert server.finished(running)["status"] == "cancelled"


def test_changes_of_arrays_and_sessions_show_no_record(server: Server) -> None:
    content = save({"array": np.zeros(3, np.float32)})
    uploaded = server.request("PUT", "/arrays/secret", content=content, headers={"Content-Type": "application/octet-stream"})
    assert uploaded.status_code == 201
    changed(server, "DELETE", "/arrays/secret")
    session = server.submit("python", {"code": "x = 1"}, session="secret")["session"]
    changed(server, "POST", f"/sessions/{session}/restart")
    changed(server, "DELETE", f"/sessions/{session}")


def test_client_says_that_the_change_was_made(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = server.submit("matrix_multiply", {"size": 8})["task_id"]
    backend = HttpBackend(server.url, server.token)
    backend._http().headers.update(NO_READ)
    with pytest.raises(NotAllowed, match="Done, but"):
        backend.call(CANCEL_TASK, ended, query={"purge": True})
    backend.close()
    assert server.request("GET", f"/tasks/{ended}").status_code == 404
