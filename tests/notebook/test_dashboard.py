"""The kernel side of the dashboard with a real runtime. tests/browser tests the page."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.transport.embedded import EmbeddedBackend
from openruntime_jupyter.notebook.dashboard import feed, widget
from openruntime_jupyter.notebook.dashboard.widget import ACTIONS, Dashboard
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.endpoints import GET_HEALTH
from tests.support import wait_until


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    embedded = EmbeddedBackend(Settings(data_dir=tmp_path_factory.mktemp("dashboard"), embedded=True, cpu_slots=1))
    yield embedded
    embedded.stop()


@pytest.fixture
def client(backend: EmbeddedBackend) -> Client:
    return Client(backend)


@pytest.fixture
def dashboard(client: Client) -> Iterator[Dashboard]:
    made = Dashboard(client)
    try:
        wait_until(lambda: made.devices, 20, "the first update")
        yield made
    finally:
        made.close()


def shown(dashboard: Dashboard, task_id: str) -> dict[str, Any] | None:
    return next((task for task in dashboard.tasks if task["task_id"] == task_id), None)


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "openruntime-events"]


def test_dashboard_shows_devices_tasks_operations_and_metrics(dashboard: Dashboard, client: Client) -> None:
    handle = client.submit("matrix_multiply", size=16)
    assert handle.wait(30).status == "completed"
    wait_until(lambda: (shown(dashboard, handle.id) or {}).get("status") == "completed", 10, "the task")
    assert dashboard.connection == {"live": True, "reason": None}
    assert dashboard.devices[0]["id"] == "device_0"
    assert {"compute", "call"} <= {operation["name"] for operation in dashboard.operations}
    assert dashboard.counts["ended"] >= 1
    assert not {"parameters", "result"} & set(shown(dashboard, handle.id) or {}), "large fields are not sent"
    wait_until(lambda: dashboard.chart, 10, "the charts")
    names = [series["name"] for series in dashboard.chart["series"]]
    assert set(names) <= set(feed.CHARTED)
    assert "memory_usage" in names
    assert len(array("f", dashboard.chart["numbers"])) == dashboard.chart["count"] * 2 * len(names)


def test_task_changes_are_sent(dashboard: Dashboard, client: Client) -> None:
    heard: list[dict[str, Any]] = []
    dashboard.observe(lambda change: heard.extend(change["new"]), ["tasks", "changes"])
    handle = client.submit_code("import time\nimport openruntime_jupyter as o\no.progress(3, 4, 'nearly')\ntime.sleep(600)")

    def told(**wanted: Any) -> bool:
        return any(each["task_id"] == handle.id and wanted.items() <= {**each, **(each.get("progress") or {})}.items() for each in heard)

    wait_until(lambda: told(n=3, message="nearly"), 20, "its progress")
    handle.cancel()
    wait_until(lambda: told(status="cancelled"), 20, "its end")


def test_tasks_are_ordered_running_waiting_ended(dashboard: Dashboard, client: Client) -> None:
    ended = client.submit("matrix_multiply", size=8)
    assert ended.wait(30).status == "completed"
    runs = client.submit_code("import time\ntime.sleep(600)")
    wait_until(lambda: runs.status == "running", 30, "the task that runs")
    later, sooner = (client.with_options(priority=priority).submit("matrix_multiply", size=8) for priority in (2, 9))
    wanted = [runs.id, sooner.id, later.id, ended.id]
    try:
        wait_until(lambda: [task["task_id"] for task in dashboard.tasks][:4] == wanted, 20, "that order")
        assert "execution_time" not in dashboard.tasks[0], "the page computes it"
    finally:
        runs.cancel()


def test_long_queue_keeps_next_and_ended_tasks_visible(dashboard: Dashboard, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "ROWS", 2)
    ended = client.submit("matrix_multiply", size=8)
    assert ended.wait(30).status == "completed"
    runs = client.submit_code("import time\ntime.sleep(600)")
    wait_until(lambda: runs.status == "running", 30, "the task that runs")
    waiting = [client.submit("matrix_multiply", size=8).id for _ in range(5)]
    try:
        wanted = [runs.id, *waiting[:2], ended.id]
        wait_until(
            lambda: [task["task_id"] for task in dashboard.tasks][:4] == wanted, 20, "those that are next, and those that have ended"
        )
        wait_until(lambda: (dashboard.counts["running"], dashboard.counts["waiting"]) == (1, 5), 20, "how many there are")
        more = asked(dashboard, monkeypatch, "tasks", order="next", offset=2, limit=2)["answer"]["tasks"]
        assert [task["task_id"] for task in more] == waiting[2:4]
        assert "parameters" not in more[0]
        before = asked(dashboard, monkeypatch, "tasks", order="newest", states=feed.ENDED, offset=0, limit=1)["answer"]["tasks"]
        assert [task["task_id"] for task in before] == [ended.id]
    finally:
        for task_id in (*waiting, runs.id):
            client.cancel(task_id)


def test_many_changes_are_batched(dashboard: Dashboard, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "CHANGES_EVERY", 3600.0)
    told: list[Any] = []
    inner = feed.feed_of(client.backend)
    wait_until(lambda: inner._table.ids or client.submit("matrix_multiply", size=8).wait(30), 20, "a row")
    some = next(iter(inner._table.ids))
    inner._flushed = time.monotonic()
    dashboard.observe(lambda change: told.append(change["new"]), "changes")
    for number in range(1000):
        inner._on_change({"task_id": some, "n": number})
    assert told == []
    wait_until(lambda: not inner._changes, 10, "the next look, which knows them")


def test_dashboard_without_views_pauses_updates(client: Client) -> None:
    wait_until(lambda: not listeners(), what="the end of the thread before")
    dashboard = Dashboard(client)
    try:
        wait_until(lambda: dashboard.devices, 20, "the first look")

        def view(name: str, shown: bool) -> None:
            dashboard._handle_custom_msg({"name": "view", "args": {"view": name, "shown": shown}}, [])

        view("one", shown=True)
        view("two", shown=True)
        view("one", shown=False)
        assert len(listeners()) == 1, "another view is shown"
        view("two", shown=False)
        wait_until(lambda: not listeners(), what="the end of the thread")
        dashboard.timeframe = "15m"
        view("three", shown=True)
        wait_until(lambda: dashboard.chart.get("timeframe") == "15m", 20, "the charts")
    finally:
        dashboard.close()


async def test_dashboard_of_page_closed_without_a_report_pauses_updates(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that is closed or loses its connection sends no last message."""
    monkeypatch.setattr(widget, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(widget, "GRACE_SECONDS", 0.1)
    await asyncio.to_thread(wait_until, lambda: not listeners(), what="the end of the thread before")
    dashboard = Dashboard(client)
    try:
        report = {"name": "view", "args": {"view": "one", "shown": True}}
        dashboard._handle_custom_msg(report, [])
        time.sleep(2)  # a kernel that runs a cell reads no reports
        assert len(listeners()) == 1
        dashboard._handle_custom_msg(report, [])
        await asyncio.to_thread(wait_until, lambda: not listeners(), what="the end of the thread")
        dashboard._handle_custom_msg(report, [])
        assert len(listeners()) == 1, "the page is back"
    finally:
        dashboard.close()


def test_timeframe_change_updates_charts(dashboard: Dashboard) -> None:
    wait_until(lambda: dashboard.chart.get("timeframe") == "5m", 10, "the charts")
    dashboard.timeframe = "24h"
    wait_until(lambda: dashboard.chart["timeframe"] == "24h", 10, "the charts of a day")
    assert dashboard.chart["resolution"] >= 60


def test_dashboards_share_one_thread_until_the_last_closes(client: Client) -> None:
    wait_until(lambda: not listeners(), what="the end of the thread before")
    several = [Dashboard(client) for _ in range(3)]
    assert len(listeners()) == 1
    for dashboard in several:
        dashboard.close()
    wait_until(lambda: not listeners(), what="the end of the thread")
    assert several[0].closed


def test_unchanged_parts_are_not_sent_again(dashboard: Dashboard, client: Client) -> None:
    wait_until(lambda: dashboard.operations, 10, "the first look")
    sent: list[set[str]] = []
    inner = feed.feed_of(client.backend)
    watching = inner.open("7d", lambda parts: sent.append(set(parts)))
    try:
        wait_until(lambda: len(sent) >= 3, 20, "several looks")
    finally:
        inner.close(watching)
    assert sum("operations" in parts for parts in sent) == 1


def test_sessions_are_shown_restarted_and_freed(dashboard: Dashboard, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.session("train").submit_code("x = 1").wait(60).status == "completed"
    wait_until(lambda: dashboard.sessions and dashboard.sessions[0]["tasks"], 20, "the session")
    (session,) = dashboard.sessions
    assert (session["name"], session["state"], session["tasks"]) == ("train", "idle", 1)
    assert session["resident_bytes"] > 0
    with monkeypatch.context() as patch:
        assert asked(dashboard, patch, "restart", id=session["id"])["answer"]["tasks"] == 0
    with monkeypatch.context() as patch:
        assert asked(dashboard, patch, "free", id=session["id"])["answer"]["name"] == "train"
    with monkeypatch.context() as patch:
        assert "no session" in asked(dashboard, patch, "free", id=session["id"])["error"]
    wait_until(lambda: not dashboard.sessions, 20, "the end of the list")


def test_fallback_without_widgets_shows_status_and_tasks(dashboard: Dashboard, client: Client) -> None:
    client.run("matrix_multiply", size=8)
    bundle, _ = dashboard._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "matrix_multiply" in bundle["text/html"]
    assert re.search(r"waiting · as of \d+ \w+ \d\d:\d\d", bundle["text/html"]), "the date of the snapshot"
    assert "OpenRuntime" in bundle["text/plain"]
    assert f"newest first · on {client.devices()[0].name}" in bundle["text/plain"], "devices by their names"
    assert repr(dashboard) == "<Dashboard of embedded>", "no memory address, which would differ between runs"


def asked(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, action: str, /, **said: Any) -> dict[str, Any]:
    """Return the kernel's response to an action."""
    answers: list[dict[str, Any]] = []
    monkeypatch.setattr(dashboard, "send", answers.append)
    dashboard._handle_custom_msg({"number": 7, "name": action, "args": said}, [])
    answer = wait_until(lambda: answers, 30, "the answer")[0]
    assert answer["number"] == 7
    return answer


def test_buttons_work_through_the_kernel(dashboard: Dashboard, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = client.submit_code("import time\nprint('in', flush=True)\ntime.sleep(600)")
    waiting = client.with_options(name="kept").submit("matrix_multiply", size=8)
    assert asked(dashboard, monkeypatch, "priority", id=waiting.id, priority=9)["answer"]["priority"] == 9
    wait_until(lambda: "in" in busy.output.stdout, 20, "the task to print")
    assert asked(dashboard, monkeypatch, "output", id=busy.id)["answer"]["items"][0]["text"] == "in\n"
    assert asked(dashboard, monkeypatch, "cancel", id=busy.id)["answer"]["status"] == "cancelled"
    assert waiting.wait(30).status == "completed"
    assert asked(dashboard, monkeypatch, "task", id=waiting.id)["answer"]["result"]["output"]["m"] == 8
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/retry.ipynb")
    again = asked(dashboard, monkeypatch, "again", id=waiting.id)["answer"]
    assert (again["operation"], again["name"], again["priority"]) == ("matrix_multiply", "kept", 9)
    assert again["notebook"] == "/work/retry.ipynb"
    for search, number in (("KEPT", 1), ("size=8", 1), ("size=9", 0)):
        query = {"order": "newest", "offset": 0, "limit": 5, "search": search, "notebook": "/work/retry.ipynb"}
        found = asked(dashboard, monkeypatch, "tasks", **query)["answer"]
        assert ([task["task_id"] for task in found["tasks"]], found["total_count"]) == ([again["task_id"]][:number], number)
    work = asked(dashboard, monkeypatch, "task", id=busy.id)["answer"]["parameters"]
    assert "time.sleep" in work["code"]
    assert "environment" not in work["world"]
    assert client.task(again["task_id"]).result(30)["m"] == 8
    wish = {"operation": "compute", "parameters": {"expression": "1 + 1", "inputs": {}}, "priority": 7, "name": "sum"}
    run = asked(dashboard, monkeypatch, "run", **wish)["answer"]
    assert (run["name"], run["priority"], run["origin"]) == ("sum", 7, "notebook")
    assert client.task(run["task_id"]).result(30)["value"] == 2
    assert asked(dashboard, monkeypatch, "insights", metric_type="errors", timeframe="5m")["answer"]["findings"]


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("unload", {"name": "nobody"}, "nobody"),
        ("dance", {}, "dance"),
        ("cancel", {}, "id"),
    ],
)
def test_failed_action_returns_reason(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, name: str, said: dict[str, Any], reason: str
) -> None:
    assert reason in asked(dashboard, monkeypatch, name, **said)["error"]


def test_form_errors_name_the_field(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = asked(dashboard, monkeypatch, "run", operation="matrix_multiply", parameters={"size": -1}, priority=30)
    fields = {detail["field"] for detail in answer["details"]}
    assert fields & {"parameters.size", "priority"}
    assert all(detail["problem"] for detail in answer["details"])


def test_kernel_implements_every_action_of_the_page() -> None:
    sources = Path(feed.__file__).parent / "frontend" / "src"
    named = {name for file in sources.glob("*.js") for name in re.findall(r'\bact\("(\w+)"', file.read_text())}
    assert named == set(ACTIONS)


def test_lost_runtime_is_reported_and_reconnected(tmp_path: Path) -> None:
    backend = EmbeddedBackend(Settings(data_dir=tmp_path, embedded=True, cpu_slots=1))
    dashboard = Dashboard(Client(backend))
    try:
        wait_until(lambda: dashboard.devices, 20, "the first look")
        backend.stop()
        wait_until(lambda: not dashboard.connection["live"], 10, "the loss")
        assert dashboard.connection["reason"]
        backend.call(GET_HEALTH)
        wait_until(lambda: dashboard.connection["live"], 20, "the runtime again")
    finally:
        dashboard.close()
        backend.stop()
