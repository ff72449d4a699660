"""`POST /tasks/batch` and `POST /tasks/batch/results` over HTTP."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest

from openruntime_jupyter.schemas.batch import MOST_IN_BATCH
from tests.server.conftest import error_of
from tests.support import STANDALONE, Server, running_server


def sent(server: Server, tasks: Any, **options: Any) -> httpx.Response:
    return server.request("POST", "/tasks/batch", json={"tasks": tasks}, **options)


def compute(**fields: Any) -> dict[str, Any]:
    return {"operation": "compute", "parameters": {}, **fields}


def results(server: Server, ids: Any, **fields: Any) -> httpx.Response:
    return server.request("POST", "/tasks/batch/results", json={"tasks": ids, **fields})


def ids_of(response: httpx.Response) -> list[str]:
    return [each["task"]["task_id"] for each in response.json()["tasks"]]


def test_batch_response_has_outcome_of_each_task(standalone: Server) -> None:
    response = sent(
        standalone, [compute(name="one"), compute(priority=11, retries=-1), {"operation": "nosuch", "parameters": {}}, compute(name="two")]
    )
    assert response.status_code == 202
    one, wrong, unknown, two = response.json()["tasks"]
    assert wrong["error"]["code"] == unknown["error"]["code"] == 422
    assert (wrong["error"]["error_code"], unknown["error"]["error_code"]) == ("invalid_request", "unknown_operation")
    assert {detail["field"] for detail in wrong["error"]["details"]} == {"priority", "retries"}
    assert "nosuch" in unknown["error"]["message"]
    assert "parameters" not in one["task"] or one["task"]["parameters"] is None
    assert [standalone.finished(each["task"]["task_id"])["name"] for each in (one, two)] == ["one", "two"]


def test_repeated_batch_creates_no_task_twice(standalone: Server) -> None:
    headers = {"Idempotency-Key": "batch-once"}
    first = sent(standalone, [compute(), compute()], headers=headers).json()["tasks"]
    again = sent(standalone, [compute(), compute()], headers=headers).json()["tasks"]
    assert [each["task"]["task_id"] for each in first] == [each["task"]["task_id"] for each in again]
    error_of(sent(standalone, [compute()], headers=headers), 422)
    error_of(standalone.request("POST", "/tasks", json=compute(wait=False), headers=headers), 422)


@pytest.mark.parametrize("tasks", [[], "compute", [compute()] * (MOST_IN_BATCH + 1)], ids=["none", "text", "too many"])
def test_invalid_batch_is_rejected(standalone: Server, tasks: Any) -> None:
    told = error_of(sent(standalone, tasks), 422)
    assert told["data"]["details"][0]["field"] == "tasks"


def test_batch_of_two_thousand_tasks_is_accepted(tmp_path: Path) -> None:
    with running_server(tmp_path, STANDALONE) as server:
        tasks = [each["task"] for each in sent(server, [compute(name=str(number)) for number in range(2000)]).json()["tasks"]]
        assert [task["name"] for task in tasks] == [str(number) for number in range(2000)]
        assert server.get("/tasks", params={"limit": 1})["total_count"] == 2000
        assert server.request("DELETE", f"/tasks/{tasks[-1]['task_id']}").json()["status"] == "cancelled"
        server.kill()  # rather than compute all of them


def test_batch_without_token_accepts_only_safe_tasks(standalone: Server) -> None:
    response = standalone.client.post(f"{standalone.url}/tasks/batch", json={"tasks": [{"operation": "call", "parameters": {}}, compute()]})
    refused, taken = response.json()["tasks"]
    assert refused["error"]["code"] == 403
    assert "token" in refused["error"]["message"]
    assert taken["task"]["timeout"] == 300


def test_results_of_many_tasks_are_in_one_response(standalone: Server) -> None:
    pickled = base64.b64encode(pickle.dumps((abs, (-3,), {}))).decode()
    ids = ids_of(sent(standalone, [{"operation": "call", "parameters": {"pickled": pickled}}, compute(name="two")]))
    called, computed, unknown = results(standalone, [*ids, "task_0"], at_least=3, wait=60).json()["results"]
    assert (called["task_id"], called["payload"]["encoding"]) == (ids[0], "cloudpickle")
    assert pickle.loads(base64.b64decode(called["payload"]["base64"])) == 3
    assert (computed["task"]["name"], computed["task"]["status"]) == ("two", "completed")
    assert "payload" not in computed
    assert unknown["error"]["code"] == 404
    assert "task" not in unknown


def test_batch_without_durability_completes(standalone: Server) -> None:
    response = standalone.request("POST", "/tasks/batch", json={"tasks": [compute()], "durable": False})
    ids = ids_of(response)
    assert response.json()["tasks"][0]["task"]["wait"] is True
    (ended,) = results(standalone, ids, wait=60).json()["results"]
    assert ended["task"]["status"] == "completed"


@pytest.mark.parametrize(("field", "value"), [("tasks", []), ("tasks", [1]), ("at_least", 0), ("wait", 61), ("since", 1)])
def test_invalid_results_request_names_field(standalone: Server, field: str, value: Any) -> None:
    body = {"tasks": ["task_0"], field: value}
    told = error_of(standalone.request("POST", "/tasks/batch/results", json=body), 422)
    assert told["data"]["details"][0]["field"].split(".")[0] == field
