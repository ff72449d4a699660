from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import STANDALONE, Home, alive, running_server, wait_until

TASKS = 10


def test_killed_server_loses_and_repeats_no_task(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.touch()
    home = Home(tmp_path / "home")
    config = {"OpenRuntimeApp": {"cpu_slots": 2}}
    with running_server(home, STANDALONE, config=config) as server:
        ids = [server.submit("python", {"code": marking_code(marks, number)}, wait=False)["task_id"] for number in range(TASKS)]
        wait_until(lambda: len(marks.read_text().split()) > 2, 30, "the first tasks")
        workers = server.descendants()
        assert workers
        server.kill()
        wait_until(lambda: not any(alive(worker) for worker in workers), 5.0, "the end of the workers")
    ran_before = Counter(marks.read_text().split())
    with running_server(home, STANDALONE, config=config) as server:
        tasks = [server.finished(task_id, 60) for task_id in ids]
        ends = Counter(task["status"] for task in tasks)
        assert set(ends) <= {"completed", "interrupted"}, ends
        assert ends["interrupted"] <= 2, "at most as many tasks as slots were running"
        runs = Counter(marks.read_text().split())
        assert set(runs.values()) == {1}, f"ran twice: {[number for number, count in runs.items() if count > 1]}"
        for number, task in enumerate(tasks):
            assert task["attempt"] == 1
            if task["status"] == "completed":
                assert runs[str(number)] == 1
            else:
                assert str(number) not in runs or ran_before[str(number)] == 1
                assert "runtime" in task["error"]
        assert server.get("/tasks", params={"limit": "1"})["total_count"] == TASKS


def marking_code(marks: Path, number: int) -> str:
    """Return code that appends one line to `marks` each time it runs."""
    write = f"os.write(os.open({os.fspath(marks)!r}, os.O_WRONLY | os.O_APPEND), b'{number}\\n')"
    return f"import os, time\n{write}\ntime.sleep(0.05)"


def test_only_running_tasks_with_retries_run_again_after_kill(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    first, second = tmp_path / "first", tmp_path / "second"
    retried = f"import os, time\nagain = os.path.exists({os.fspath(first)!r})\nopen({os.fspath(first)!r}, 'a').write('x')\n"
    retried += "if not again: time.sleep(600)\nprint('again')"
    waited_for = f"open({os.fspath(second)!r}, 'a').write('x')\nimport time; time.sleep(600)"
    with running_server(home, STANDALONE, config={"OpenRuntimeApp": {"cpu_slots": 2}}) as server, ThreadPoolExecutor(1) as threads:
        retried_id = server.submit("python", {"code": retried}, wait=False, retries=1)["task_id"]
        waiting = threads.submit(server.submit, "python", {"code": waited_for})
        wait_until(lambda: first.exists() and second.exists(), 20, "the first runs")
        running = server.get("/tasks", params={"state": "running"})["tasks"]
        (synchronous_id,) = {task["task_id"] for task in running} - {retried_id}
        server.kill()
        with pytest.raises(httpx.TransportError):
            waiting.result(10)
    with running_server(home, STANDALONE) as server:
        task = server.finished(retried_id)
        assert (task["status"], task["attempt"], first.read_text()) == ("completed", 2, "xx")
        assert server.get(f"/tasks/{retried_id}/output")["items"][-1]["text"] == "again\n"
        assert (server.finished(synchronous_id)["status"], second.read_text()) == ("interrupted", "x")
