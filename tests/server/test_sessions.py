"""Sessions over REST."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.conftest import error_of
from tests.support import Server, wait_until

ENDLESS = "import time\nprint('in', flush=True)\nwhile True: time.sleep(0.01)"


@pytest.fixture(autouse=True)
def no_session_is_left(jupyter: Server) -> Iterator[None]:
    """Free the sessions of a test, because all tests share the server."""
    yield
    for each in jupyter.get("/sessions")["sessions"]:
        jupyter.request("DELETE", f"/sessions/{each['id']}")


def ran(server: Server, code: str, session: str = "train") -> dict[str, object]:
    """Run code in the session and return the completed task."""
    task: dict[str, object] = server.submit("python", {"code": code}, session=session)
    assert task["status"] == "completed", task
    return task


def only(server: Server) -> dict[str, object]:
    (session,) = server.get("/sessions")["sessions"]
    return dict(session)


def test_sessions_are_listed_with_their_worker(jupyter: Server) -> None:
    assert jupyter.get("/sessions") == {"sessions": []}
    task = ran(jupyter, "x = 1")
    session = only(jupyter)
    assert (session["name"], session["state"], session["tasks"]) == ("train", "idle", 1)
    assert (task["session"], task["session_name"]) == (session["id"], "train")
    assert isinstance(session["resident_bytes"], int)
    assert session["expires_at"] is not None
    (worker,) = [each for each in jupyter.get("/workers")["workers"] if each["session"] is not None]
    assert (worker["id"], worker["session"], worker["session_name"]) == (session["worker"], session["id"], "train")
    assert ran(jupyter, "x += 1", session=str(session["id"]))["session"] == session["id"]


def test_delete_frees_a_session_and_its_task(jupyter: Server) -> None:
    ran(jupyter, "x = 1")
    session = only(jupyter)
    task_id = jupyter.submit("python", {"code": ENDLESS}, session="train", wait=False)["task_id"]
    wait_until(lambda: jupyter.get(f"/tasks/{task_id}/output")["items"], what="the running task")
    freed = jupyter.request("DELETE", f"/sessions/{session['id']}").json()
    assert (freed["name"], freed["state"], freed["task_id"]) == ("train", "busy", task_id)
    assert "session" in jupyter.finished(task_id)["error"]
    assert jupyter.get("/sessions") == {"sessions": []}
    again = jupyter.request("POST", "/tasks", json={"operation": "python", "parameters": {"code": "x"}, "session": session["id"]})
    told = error_of(again, 422)
    assert "session" in told["error"]
    assert told["data"]["details"][0]["field"] == "session"


def test_unknown_sessions_are_404(jupyter: Server) -> None:
    ran(jupyter, "x = 1")
    for verb, path in (("DELETE", "/sessions/session_0nosuch"), ("POST", "/sessions/session_0nosuch/restart")):
        assert "train (session_" in error_of(jupyter.request(verb, path), 404)["error"]
    error_of(jupyter.request("GET", "/sessions/session_0nosuch"), 405)
