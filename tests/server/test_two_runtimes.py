"""Two servers of one user with a shared history."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx

from tests.server.conftest import error_of
from tests.support import JUPYTER, STANDALONE, TOKEN, Server, running_server, wait_until


def test_server_sees_tasks_of_other_server(tmp_path: Path) -> None:
    code = "import time\nprint('hello', flush=True)\ntime.sleep(60)"
    with running_server(tmp_path, STANDALONE, token=TOKEN) as one, running_server(one.home, JUPYTER) as other:
        task_id = one.submit("python", {"code": code}, wait=False)["task_id"]
        wait_until(lambda: other.get(f"/tasks/{task_id}")["status"] == "running", what="the other's running task")
        seen = other.get(f"/tasks/{task_id}")
        assert (seen["here"], one.get(f"/tasks/{task_id}")["here"]) == (False, True)
        assert task_id in [task["task_id"] for task in other.get("/tasks")["tasks"]]
        refused = error_of(other.request("DELETE", f"/tasks/{task_id}"), 409)
        assert seen["runtime"] in refused["error"]
        error_of(other.request("PATCH", f"/tasks/{task_id}", json={"priority": 9}), 409)
        begun = time.monotonic()
        assert other.get(f"/tasks/{task_id}/output", params={"since": "100", "wait": "1"})["finished"] is False
        assert time.monotonic() - begun > 0.9
        wait_until(lambda: one.get(f"/tasks/{task_id}/output")["items"], what="what it prints")
        assert one.request("DELETE", f"/tasks/{task_id}").json()["status"] == "cancelled"
        assert other.finished(task_id)["status"] == "cancelled"
        output = other.get(f"/tasks/{task_id}/output", params={"wait": "5"})
        assert (output["finished"], output["items"][0]["text"]) == (True, "hello\n")


def test_concurrent_batch_with_one_key_is_created_once(tmp_path: Path) -> None:
    tasks = [{"operation": "compute", "parameters": {"expression": str(number)}} for number in range(600)]
    config = {"OpenRuntimeApp": {"cpu_slots": 1}}
    with (
        running_server(tmp_path, STANDALONE, token=TOKEN, config=config) as one,
        running_server(one.home, JUPYTER, config=config) as other,
    ):
        for server in (one, other):  # no task of the batch runs
            server.submit("python", {"code": "import time\ntime.sleep(600)"}, wait=False, priority=10)

        def send(server: Server) -> httpx.Response:
            return server.request("POST", "/tasks/batch", json={"tasks": tasks}, headers={"Idempotency-Key": "both"})

        with ThreadPoolExecutor(2) as threads:
            first = list(threads.map(send, (one, other)))
        assert {answer.status_code for answer in first} <= {202, 409}, [answer.text[:500] for answer in first]
        ids = {tuple(each["task"]["task_id"] for each in send(server).json()["tasks"]) for server in (one, other)}
        assert len(ids) == 1
        assert one.get("/tasks")["total_count"] == len(tasks) + 2


def test_servers_share_slot_and_kill_releases_it(tmp_path: Path) -> None:
    spins = "import time\nbegun = time.time()\nwhile time.time() < begun + 0.05: pass\nspan = str([begun, time.time()])"
    holds = "import time\nprint('in', flush=True)\nwhile True: time.sleep(0.01)"
    config = {"OpenRuntimeApp": {"device_lock": "all", "cpu_slots": 1}}
    with (
        running_server(tmp_path, STANDALONE, token=TOKEN, config=config) as one,
        running_server(one.home, JUPYTER, config=config) as other,
    ):
        tasks = [
            (server, server.submit("python", {"code": spins, "outputs": ["span"]}, wait=False)) for server in (one, other) for _ in range(5)
        ]
        spans = []
        for server, task in tasks:
            ended = server.finished(task["task_id"])
            begun, over = ended["result"]["output"]["outputs"]["span"]["value"].strip("[]").split(", ")
            spans.append((begun, over, server.url))
        spans.sort()
        for earlier, later in pairwise(spans):
            assert later[0] >= earlier[1], "two tasks computed on one slot at once"
        assert sum(earlier[2] != later[2] for earlier, later in pairwise(spans)) >= 2, "neither waits until the other has done all"
        holder = one.submit("python", {"code": holds}, wait=False, name="long training")["task_id"]
        wait_until(lambda: one.get(f"/tasks/{holder}/output")["items"], what="the task that holds the slot")
        waiting = other.submit("matrix_multiply", {"size": 16}, wait=False)["task_id"]
        told = wait_until(lambda: other.get(f"/tasks/{waiting}")["waiting_for"], what="who has the slot")
        assert one.url in told
        assert "long training" in told
        one.kill()
        assert other.finished(waiting)["status"] == "completed"
