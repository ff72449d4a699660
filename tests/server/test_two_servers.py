"""Two servers of one user, which share a history."""

from __future__ import annotations

import time
from pathlib import Path

from tests.server.conftest import error_of
from tests.support import JUPYTER, STANDALONE, TOKEN, running_server, wait_until


def test_each_sees_the_others_tasks_as_the_others(tmp_path: Path) -> None:
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
        assert one.request("DELETE", f"/tasks/{task_id}").json()["status"] == "cancelled"
        assert other.finished(task_id)["status"] == "cancelled"
        output = other.get(f"/tasks/{task_id}/output", params={"wait": "5"})
        assert (output["finished"], output["items"][0]["text"]) == (True, "hello\n")
