"""Tasks over HTTP, against a real stand-alone server and its real workers."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from openruntime_jupyter.schemas.tasks import Task, TaskOutput, TaskPage
from tests.server.conftest import error_of, raw_request
from tests.support import STANDALONE, TOKEN, Server, running_server, wait_until

QUICK = {"operation": "matrix_multiply", "parameters": {"size": 16, "iterations": 1}}
ENVELOPE = "application/vnd.openruntime.envelope+json"


def sleeping(seconds: float = 60.0, **fields: Any) -> dict[str, Any]:
    return {"operation": "python", "parameters": {"code": f"import time\ntime.sleep({seconds})"}, **fields}


def post(server: Server, body: dict[str, Any], **headers: str) -> Any:
    return server.request("POST", "/tasks", json=body, headers=headers)


def cancelled(server: Server, task_id: str) -> Any:
    response = server.request("DELETE", f"/tasks/{task_id}")
    assert response.status_code == 200, response.text
    return response.json()


def test_synchronous_task_responds_at_completion(standalone: Server) -> None:
    response = post(standalone, QUICK)
    task = Task.model_validate(response.json())
    assert response.status_code == 200
    assert task.status == "completed"
    assert task.result is not None
    assert task.result.device_used == task.device_used == "device_0"
    assert task.parameters is None
    assert standalone.get(f"/tasks/{task.task_id}")["parameters"] == QUICK["parameters"]
    assert "Preference-Applied" not in response.headers


@pytest.mark.parametrize("notebook", ["", "a\nb.ipynb", "x" * 1025])
def test_invalid_notebook_is_rejected(standalone: Server, notebook: Any) -> None:
    response = post(standalone, {**QUICK, "notebook": notebook})
    assert "notebook" in error_of(response, 422)["error"]


@pytest.mark.parametrize("way", ["body", "header"])
def test_asynchronous_task_returns_202_with_location(standalone: Server, way: str) -> None:
    response = post(standalone, sleeping(wait=False)) if way == "body" else post(standalone, sleeping(), Prefer="respond-async")
    assert response.status_code == 202
    task = Task.model_validate(response.json())
    assert not task.wait
    assert not task.status.terminal
    assert response.headers["Location"] == f"/tasks/{task.task_id}"
    assert response.headers.get("Preference-Applied") == ("respond-async" if way == "header" else None)
    assert cancelled(standalone, task.task_id)["status"] == "cancelled"


def test_location_includes_jupyter_base_url(jupyter: Server) -> None:
    response = post(jupyter, {**QUICK, "wait": False})
    location = response.headers["Location"]
    assert location == f"/user/x/openruntime/tasks/{response.json()['task_id']}"
    origin = jupyter.root.removesuffix("/user/x")
    assert jupyter.client.get(origin + location, headers=jupyter.headers).json()["task_id"] == response.json()["task_id"]


def test_prefer_wait_returns_finished_task_or_location(standalone: Server) -> None:
    done = post(standalone, QUICK, Prefer="wait=20")
    assert (done.status_code, done.json()["status"], done.headers["Preference-Applied"]) == (200, "completed", "wait=20")
    started = time.monotonic()
    going_on = post(standalone, sleeping(), Prefer="wait=0.3")
    assert 0.3 <= time.monotonic() - started < 60, "and not as long as the task"
    assert (going_on.status_code, going_on.headers["Preference-Applied"]) == (202, "wait=0.3")
    task_id = going_on.json()["task_id"]
    wait_until(lambda: standalone.get(f"/tasks/{task_id}")["status"] == "running", what="the task going on")
    assert cancelled(standalone, task_id)["status"] == "cancelled"


def test_idempotency_key_returns_same_task(standalone: Server) -> None:
    key = uuid.uuid4().hex
    headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
    first, second = post(standalone, QUICK, **headers), post(standalone, QUICK, **headers)
    assert first.json()["task_id"] == second.json()["task_id"]
    other = post(standalone, {**QUICK, "priority": 9}, **headers)
    assert error_of(other, 422)["data"]["details"][0]["field"] == "Idempotency-Key"
    assert error_of(post(standalone, QUICK, **{"Idempotency-Key": "k" * 256}), 422)


def test_concurrent_requests_with_one_key_create_one_task(standalone: Server) -> None:
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: post(standalone, QUICK, **{"Idempotency-Key": key}).json(), range(8)))
    assert len({answer["task_id"] for answer in answers}) == 1
    assert {answer["status"] for answer in answers} == {"completed"}


def waiting(server: Server, body: dict[str, Any], *headers: str) -> socket.socket:
    """Return the connection of a client that waits for a synchronous task."""
    content = json.dumps(body).encode()
    connection = raw_request(server, "POST", "/tasks", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers)
    connection.sendall(content)
    return connection


def running_named(server: Server, name: str) -> str:
    """Wait until the task with this name runs, and return its id."""
    found = wait_until(
        lambda: [task for task in server.get("/tasks", params={"state": "running"})["tasks"] if task["name"] == name],
        what=f"{name} running",
    )
    return str(found[0]["task_id"])


def test_disconnect_cancels_synchronous_task(standalone: Server) -> None:
    name = uuid.uuid4().hex
    with waiting(standalone, sleeping(name=name)):
        task_id = running_named(standalone, name)
    assert standalone.finished(task_id)["status"] == "cancelled"


def test_task_continues_while_another_client_waits(standalone: Server) -> None:
    name, key = uuid.uuid4().hex, uuid.uuid4().hex
    body = sleeping(name=name)
    first, second = (waiting(standalone, body, f"Idempotency-Key: {key}") for _ in range(2))
    task_id = running_named(standalone, name)
    # Requests with one key are processed one after the other, so the second one has its task after this response.
    assert post(standalone, body, **{"Idempotency-Key": key, "Prefer": "respond-async"}).json()["task_id"] == task_id
    first.close()
    assert standalone.get(f"/tasks/{task_id}", params={"wait": "1"})["status"] == "running"
    second.close()
    assert standalone.finished(task_id)["status"] == "cancelled"


def test_disconnect_keeps_asynchronous_task(standalone: Server) -> None:
    task = post(standalone, sleeping(wait=False)).json()
    with raw_request(standalone, "GET", f"/tasks/{task['task_id']}?wait=30"):
        time.sleep(0.2)
    assert standalone.get(f"/tasks/{task['task_id']}", params={"wait": "0.5"})["status"] == "running"
    cancelled(standalone, task["task_id"])


def test_task_list_is_newest_first_with_filters_and_pages(standalone: Server) -> None:
    owner_page = TaskPage.model_validate(standalone.get("/tasks"))
    made = [post(standalone, {**QUICK, "name": f"page {number}"}).json()["task_id"] for number in range(5)]
    first = TaskPage.model_validate(standalone.get("/tasks", params={"limit": 2, "operation": "matrix_multiply"}))
    assert [task.task_id for task in first.tasks] == made[:-3:-1]
    assert first.tasks[0].parameters is None
    assert first.next_before is not None
    second = TaskPage.model_validate(
        standalone.get("/tasks", params={"limit": 2, "before": first.next_before, "operation": "matrix_multiply"})
    )
    assert [task.task_id for task in second.tasks] == made[2:0:-1]
    offset = TaskPage.model_validate(standalone.get("/tasks", params={"limit": 2, "offset": 2, "operation": "matrix_multiply"}))
    assert [task.task_id for task in offset.tasks] == made[2:0:-1]
    assert TaskPage.model_validate(standalone.get("/tasks")).total_count == owner_page.total_count + 5
    assert standalone.get("/tasks", params={"state": "completed,failed", "limit": 1})["tasks"][0]["status"] == "completed"
    assert standalone.get("/tasks", params={"owner": "nobody at all"})["tasks"] == []


def test_priority_can_only_change_while_pending(standalone: Server) -> None:
    slots = standalone.get("/devices")["devices"][0]["slots"]
    busy = [post(standalone, sleeping(wait=False)).json()["task_id"] for _ in range(slots)]
    waiting = post(standalone, sleeping(wait=False)).json()["task_id"]
    for task_id in busy:
        wait_until(lambda task_id=task_id: standalone.get(f"/tasks/{task_id}")["status"] == "running", what="a busy device")  # type: ignore[misc]
    changed = standalone.request("PATCH", f"/tasks/{waiting}", json={"priority": 9})
    assert (changed.status_code, changed.json()["priority"], changed.json()["status"]) == (200, 9, "pending")
    assert "running" in error_of(standalone.request("PATCH", f"/tasks/{busy[0]}", json={"priority": 9}), 409)["error"]
    assert (
        error_of(standalone.request("PATCH", f"/tasks/{waiting}", json={"priority": 11}), 422)["data"]["details"][0]["field"] == "priority"
    )
    for task_id in (waiting, *busy):
        assert cancelled(standalone, task_id)["status"] == "cancelled"


def test_finished_task_is_unchanged_until_purged(standalone: Server) -> None:
    task = post(standalone, QUICK).json()
    path = f"/tasks/{task['task_id']}"
    assert cancelled(standalone, task["task_id"])["status"] == "completed"
    erased = standalone.request("DELETE", path, params={"purge": "true"})
    assert (erased.status_code, erased.json()["task_id"]) == (200, task["task_id"])
    error_of(standalone.request("GET", path), 404)
    error_of(standalone.request("DELETE", path), 404)


def test_running_task_cannot_be_purged(standalone: Server) -> None:
    task_id = post(standalone, sleeping(wait=False)).json()["task_id"]
    error_of(standalone.request("DELETE", f"/tasks/{task_id}", params={"purge": "true"}), 409)
    cancelled(standalone, task_id)


def test_get_task_waits_for_completion(standalone: Server) -> None:
    task_id = post(standalone, sleeping(1, wait=False)).json()["task_id"]
    now = standalone.get(f"/tasks/{task_id}", params={"wait": "0.1"})
    assert now["status"] in ("pending", "running"), json.dumps(now)
    ended = standalone.get(f"/tasks/{task_id}", params={"wait": "30"})
    assert ended["status"] == "completed", ended
    error_of(standalone.request("GET", f"/tasks/{task_id}", params={"wait": "61"}), 422)


def test_output_is_returned_while_task_runs(standalone: Server) -> None:
    code = "import time\nprint('first', flush=True)\ntime.sleep(1.5)\nprint('second', flush=True)\ntime.sleep(60)"
    task_id = post(standalone, {"operation": "python", "parameters": {"code": code}, "wait": False}).json()["task_id"]
    first = TaskOutput.model_validate(standalone.get(f"/tasks/{task_id}/output", params={"wait": "20"}))
    assert "".join(item.text or "" for item in first.items) == "first\n"
    assert not first.finished
    second = TaskOutput.model_validate(standalone.get(f"/tasks/{task_id}/output", params={"since": first.next, "wait": "20"}))
    assert "".join(item.text or "" for item in second.items) == "second\n"
    cancelled(standalone, task_id)
    last = TaskOutput.model_validate(standalone.get(f"/tasks/{task_id}/output", params={"since": second.next, "wait": "20"}))
    assert last.finished
    assert last.items == []


def test_tasks_are_searched_by_name_code_and_parameters(standalone: Server) -> None:
    code = post(standalone, {"operation": "python", "parameters": {"code": "found_by = 'its code'"}}).json()["task_id"]
    size = post(standalone, {**QUICK, "operation": "matrix_multiply", "parameters": {"size": 37}, "name": "Found_By"}).json()["task_id"]

    def found(text: str, **query: str) -> list[str]:
        page = standalone.get("/tasks", params={"search": text, **query})
        assert page["total_count"] == len(page["tasks"])
        return [task["task_id"] for task in page["tasks"]]

    assert found("found_BY") == [size, code]
    assert found("'its code'") == [code]
    assert found("size=37") == [size]
    assert found("found_by", operation="python") == [code]
    assert found("found_by", order="next") == []
    blocked = {"operation": "python", "parameters": {"code": "import time; time.sleep(600)  # found by"}, "wait": False}
    made = [post(standalone, blocked).json()["task_id"] for _ in range(20)]
    waiting = standalone.get("/tasks", params={"search": "# found by", "order": "next", "limit": 3, "offset": 1})
    pending = [task for task in standalone.get("/tasks", params={"state": "pending"})["tasks"] if task["task_id"] in made]
    assert waiting["total_count"] == len(pending)
    assert [task["task_id"] for task in waiting["tasks"]] == made[len(made) - len(pending) + 1 :][:3]
    for task_id in reversed(made):
        standalone.request("DELETE", f"/tasks/{task_id}")


def test_running_task_has_memory_of_its_worker(standalone: Server) -> None:
    code = "import time\nheld = bytearray(200_000_000)\nfor at in range(0, len(held), 4096): held[at] = 1\ntime.sleep(600)"
    task_id = post(standalone, {"operation": "python", "parameters": {"code": code}, "wait": False}).json()["task_id"]
    path = f"/tasks/{task_id}"
    wait_until(lambda: (standalone.get(path)["resident_bytes"] or 0) > 200_000_000, 60.0, "the memory of the running task")
    (listed,) = (task for task in standalone.get("/tasks", params={"state": "running"})["tasks"] if task["task_id"] == task_id)
    assert 200_000_000 < listed["resident_bytes"] < 2_000_000_000
    standalone.request("DELETE", path)
    assert standalone.finished(task_id)["resident_bytes"] is None


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["small", "a file"])
def test_payload_is_returned_unchanged(standalone: Server, size: int) -> None:
    import base64

    pickled = base64.b64encode(cloudpickle.dumps((lambda n: b"x" * n, (size,), {}))).decode()
    task = Task.model_validate(post(standalone, {"operation": "call", "parameters": {"pickled": pickled}}).json())
    assert task.result is not None, task.error
    assert task.result.payload is not None
    response = standalone.request("GET", f"/tasks/{task.task_id}/payload")
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["X-OpenRuntime-Encoding"] == task.result.payload.encoding == "cloudpickle"
    assert len(response.content) == task.result.payload.size
    told = standalone.request("HEAD", f"/tasks/{task.task_id}/payload")
    assert (told.headers["Content-Length"], told.content) == (str(task.result.payload.size), b"")
    assert told.headers["X-OpenRuntime-Encoding"] == "cloudpickle"
    assert cloudpickle.loads(response.content) == b"x" * size


def test_missing_payload_is_404(standalone: Server) -> None:
    task = post(standalone, QUICK).json()
    error_of(standalone.request("GET", f"/tasks/{task['task_id']}/payload"), 404)


def test_envelope_is_used_for_success_on_request(standalone: Server) -> None:
    response = standalone.request("GET", "/devices", headers={"Accept": f"{ENVELOPE}, application/json;q=0.5"})
    told = response.json()
    assert response.headers["Content-Type"] == ENVELOPE
    assert (told["status"], told["error"]) == ("success", None)
    assert told["data"] == standalone.get("/devices") or told["data"]["devices"][0]["id"] == "device_0"
    assert response.headers["Vary"] == "Accept"
    submitted = post(standalone, QUICK, Accept=ENVELOPE).json()
    assert submitted["data"]["status"] == "completed"


def test_nan_and_invalid_text_are_valid_json(standalone: Server) -> None:
    code = "values = {'nan': float('nan'), 'inf': float('inf')}\nprint(chr(0xd800))\nhalf = chr(0xdc00)"
    response = post(standalone, {"operation": "python", "parameters": {"code": code, "outputs": ["values", "half"]}})
    assert response.status_code == 200
    json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is not valid JSON"))
    assert standalone.request("GET", f"/tasks/{response.json()['task_id']}/output").status_code == 200
    raised = post(standalone, {"operation": "python", "parameters": {"code": "raise ValueError(chr(0xdc00))"}})
    assert (raised.status_code, raised.json()["failure"]["type"]) == (200, "ValueError")


def test_running_code_needs_execute_permission(jupyter: Server) -> None:
    code = {"operation": "python", "parameters": {"code": "1 + 1"}}
    assert post(jupyter, code).json()["status"] == "completed"
    denied = post(jupyter, code, **{"X-Deny": "execute:kernels"})
    assert "execute" in error_of(denied, 403)["error"]
    error_of(post(jupyter, {"operation": "call", "parameters": {"pickled": ""}}, **{"X-Deny": "execute:kernels"}), 403)
    assert post(jupyter, QUICK, **{"X-Deny": "execute:kernels"}).json()["status"] == "completed"


def test_task_owner_is_stable_for_login(jupyter: Server) -> None:
    owners = {post(jupyter, QUICK).json()["owner"] for _ in range(3)}
    assert len(owners) == 1
    assert owners != {None}


def test_full_queue_returns_503_with_retry_after(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = {"OpenRuntimeApp": {"cpu_slots": 1, "max_pending": 1}}
    with running_server(tmp_path_factory.mktemp("full"), STANDALONE, token=TOKEN, config=config) as server:
        busy = post(server, sleeping(wait=False)).json()["task_id"]
        wait_until(lambda: server.get(f"/tasks/{busy}")["status"] == "running", what="a busy device")
        assert post(server, sleeping(wait=False)).status_code == 202
        refused = post(server, sleeping(wait=False))
        assert "1" in error_of(refused, 503)["error"]
        assert int(refused.headers["Retry-After"]) >= 1
        (of_batch,) = server.request("POST", "/tasks/batch", json={"tasks": [QUICK]}).json()["tasks"]
        assert of_batch["error"]["code"] == 503
        assert of_batch["error"]["retry_after"] >= 1
        wait_until(lambda: "503 POST /tasks" in server.tail(), what="the rejected request in the log")
        assert "ERROR" not in server.tail()
        assert "python-httpx" not in server.tail()


def test_cancel_during_import_keeps_modules_consistent(tmp_path: Path) -> None:
    package = tmp_path / "half"
    package.mkdir()
    (package / "__init__.py").write_text("from half import inner")
    (package / "inner.py").write_text("import half.done, time\nprint('importing', flush=True)\ntime.sleep(60)")
    (package / "done.py").write_text("")
    importing = {"code": f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport half"}
    looking = {"code": "import sys\nleft = [name for name in sys.modules if name.startswith('half')]", "outputs": ["left"]}
    with running_server(tmp_path, STANDALONE, token=TOKEN, config={"OpenRuntimeApp": {"cpu_slots": 1}}) as server:
        for _ in range(2):
            task_id = server.submit("python", importing, wait=False)["task_id"]
            wait_until(lambda task_id=task_id: server.get(f"/tasks/{task_id}/output")["items"], what="the import")  # type: ignore[misc]
            assert cancelled(server, task_id)["cancel_stage"] == "interrupt"
            looked = server.submit("python", looking)
            assert looked["status"] == "completed", looked
            assert looked["result"]["output"]["outputs"]["left"]["value"] == []


def test_hundred_concurrent_clients_get_responses(standalone: Server) -> None:
    barrier = threading.Barrier(20)

    def one(number: int) -> int:
        if number < 20:
            barrier.wait(10)
        return int(post(standalone, QUICK).status_code)

    with ThreadPoolExecutor(20) as threads:
        assert set(threads.map(one, range(100))) == {200}
