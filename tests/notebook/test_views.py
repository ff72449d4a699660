"""Views: plain text, escaping and state names."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import pytest

from openruntime_jupyter.notebook.ai.live_answer import AnswerView
from openruntime_jupyter.notebook.commands import HELP
from openruntime_jupyter.notebook.display.errors import ErrorCard
from openruntime_jupyter.notebook.display.format import clock, device_name, duration, local_times, number, ordinal, unit_head, with_unit
from openruntime_jupyter.notebook.display.html import View, tag
from openruntime_jupyter.notebook.display.tables import (
    DeviceTable,
    HostTable,
    InsightsCard,
    ModelTable,
    OperationTable,
    Status,
    WorkerTable,
)
from openruntime_jupyter.notebook.display.tasks import LeftTasks, ResultCard, TaskCard, TaskLine, TaskTable
from openruntime_jupyter.schemas.ai import ModelInfo, ModelList, ProfileInfo, ResidentInfo
from openruntime_jupyter.schemas.hosts import Host
from openruntime_jupyter.schemas.insights import Finding, Insights
from openruntime_jupyter.schemas.system import Device, Health, Metrics, OperationInfo, Worker
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, Progress, Task, TaskPage, TaskState

NOW = "2026-01-01T00:00:00.000000Z"
EVIL = '</pre></style><script>alert("1")</script>&amp; {x} \x1b[31m'
VOID = {"br", "hr", "img", "input"}


def task(**changes: Any) -> Task:
    known = {"task_id": "task_1", "status": TaskState.RUNNING, "operation": "python", "timestamp": NOW, "submitted_at": NOW}
    return Task.model_validate({**known, **changes})


def failed(**changes: Any) -> Task:
    failure = {"kind": FailureKind.RAISED, "message": EVIL, "type": EVIL, "traceback": EVIL, "last_output": EVIL, **changes}
    return task(status=TaskState.FAILED, error=EVIL, name=EVIL, failure=Failure.model_validate(failure), execution_time=1.0)


def page(*tasks: Task) -> TaskPage:
    return TaskPage(tasks=list(tasks), total_count=len(tasks), next_before=None, timestamp=NOW)


def status(advice: str | None = None) -> Status:
    figures = Metrics.model_validate({"gpu_utilization": 0.0, "memory_usage": 31.0, "active_tasks": 1, "ai_tasks_processed": 0})
    health = Health.model_validate({"status": "healthy", "timestamp": NOW, "version": "2.0.0", "devices": 1, "metrics": figures})
    known = {
        "id": "device_0",
        "name": EVIL,
        "type": "cpu",
        "status": "busy",
        "capabilities": ["mlx"],
        "memory_total": 8e9,
        "memory_available": 4e9,
    }
    return Status(EVIL, health, [Device.model_validate({**known, "advice": advice, "blas": "OpenBLAS"})])


def model() -> ModelInfo:
    resident = ResidentInfo(lane="device_0", state="idle", resident_bytes=359_000_000, idle_seconds=60.0, keep_alive_seconds=300.0)
    return ModelInfo(
        name=EVIL,
        kind="gguf",
        engine="llama.cpp",
        quantisation="Q4_K_M",
        bytes=98_000_000,
        context_length=8192,
        memory_bytes=391_000_000,
        tokens_per_second=37.94,
        abilities=["chat", "tools"],
        resident=[resident],
    )


def test_model_table_tells_engine_type_needs_speed_and_abilities() -> None:
    text = ModelTable(ModelList(models=[model().model_copy(update={"name": "small"})]))._repr_mimebundle_()["text/plain"]
    for told in ("llama.cpp", "Q4_K_M", "98.0 MB", "391 MB", "8,192 tokens", "37.9 tokens/s", "chat, tools", "idle, 359 MB, for 4 min"):
        assert told in text
    assert (
        "speed"
        not in ModelTable(ModelList(models=[model().model_copy(update={"tokens_per_second": None})]))._repr_mimebundle_()["text/plain"]
    )


def worker(model: str | None = None) -> Worker:
    return Worker(id="worker_1", device="device_0", state="idle", interpreter=EVIL, started_at=NOW, model=model, tasks=3, device_time_s=4.5)


def host(**changes: Any) -> Host:
    return Host.model_validate({"name": EVIL, "state": "ready", "address": EVIL, "since": NOW, **changes})


class Balanced(HTMLParser):
    """Parser that collects elements and checks that each is closed correctly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.wrong: list[str] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(name)
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open.pop() != name:
            self.wrong.append(name)


EVERY = [
    TaskLine(task(name=EVIL, progress=Progress.model_validate({"n": 3, "total": 7, "message": EVIL})), {}),
    TaskLine(failed(), {}, note=EVIL),
    TaskCard(failed(), {"device_0": EVIL}),
    LeftTasks([failed(), *[task(name=EVIL)] * 10], EVIL),
    TaskTable(page(failed(), task(owner=EVIL, here=False)), {}),
    TaskTable(page(), {}),
    TaskTable(page(), {}, {"operation": EVIL}),
    ResultCard(task(status=TaskState.COMPLETED, execution_time=0.5), {EVIL: EVIL, "nested": {EVIL: [EVIL]}}),
    OperationTable(
        [OperationInfo(name=EVIL, summary=EVIL, needs_execute=False, parameters_schema={"properties": {EVIL: {"default": EVIL}}})]
    ),
    status(EVIL),
    DeviceTable(status(EVIL).devices),
    DeviceTable([]),
    HostTable([host(devices=[f"{EVIL}.device_0"], models=[EVIL]), host(state="lost", problem=EVIL, advice=EVIL)]),
    HostTable([]),
    WorkerTable([worker(EVIL), worker()], {"device_0": EVIL}),
    WorkerTable([], {}),
    HELP,
    ErrorCard(failed(), {}),
    ErrorCard(failed(kind=FailureKind.WORKER_DIED, traceback=None), {}, watched=False),
    ErrorCard(failed(traceback='  File "In [1]", line 1\nError: no'), {}, logged=True),
    ModelTable(ModelList(models=[model()], profiles=[ProfileInfo(name="cloud", model=EVIL, default=True)])),
]


@pytest.mark.parametrize("view", EVERY, ids=lambda view: type(view).__name__)
def test_views_are_valid_labelled_html_and_plain_text(view: View) -> None:
    bundle = view._repr_mimebundle_()
    assert "aria-label=" in bundle["text/html"]
    assert bundle["text/plain"].strip()
    assert "<div" not in bundle["text/plain"]
    found = Balanced()
    found.feed(bundle["text/html"])
    assert (found.wrong, found.open) == ([], [])
    assert "script" not in found.names


def test_tables_omit_unmeasured_columns() -> None:
    assert "model" in str(WorkerTable([worker("smol")], {}).html())
    shown = str(WorkerTable([worker()], {}).html())
    assert "model" not in shown
    assert "MLX" not in shown
    assert "°C" not in DeviceTable(status().devices).text()
    assert "GPU" not in status().text()
    warm = status().devices[0].model_copy(update={"temperature_celsius": 0.0, "utilization": 12.4})
    assert "°C" in DeviceTable([warm]).text()
    assert "12 %" in DeviceTable([warm]).text()


def test_attributes_are_escaped() -> None:
    assert tag("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "● running · python · task_1"),
        ({"status": "pending", "position": 1}, "○ waiting · python · next in line · task_1"),
        (
            {"status": "pending", "position": 3, "waiting_for": "memory", "priority": 8},
            "○ waiting · python · 3rd in line · for memory · priority 8 · task_1",
        ),
        (
            {"progress": {"n": 5, "total": 20, "message": "epochs", "remaining": 7.6}, "execution_time": 2.5, "name": "fit"},
            "● running · fit · 25% (5 of 20) · about 8 s left · 2.5 s · epochs · task_1",
        ),
        ({"progress": {"n": 5}}, "● running · python · 5 done · task_1"),
        (
            {"status": "completed", "execution_time": 0.0123, "device_used": "device_0", "performance_metrics": {"memory_used_mb": 12}},
            "✓ completed in 12 ms · python · 12.0 MB of arrays · a chip · task_1",
        ),
        ({"status": "cancelled"}, "■ cancelled before it started · python · task_1"),
        ({"status": "timed_out", "execution_time": 61}, "✕ timed out after 1 min 1 s · python · task_1"),
        ({"status": "failed", "execution_time": 1, "attempt": 2}, "✕ failed after 1.0 s · python · attempt 2 · task_1"),
    ],
)
def test_task_line_shows_state(changes: dict[str, Any], expected: str) -> None:
    text = TaskLine(task(**changes), {"device_0": "a chip"}).text()
    assert re.sub(r"as of \d+ \w+ \d\d:\d\d · ", "", text) == expected


def test_states_that_are_not_final_show_when_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_at = datetime(2026, 11, 30, 1, 17, tzinfo=timezone(timedelta(hours=5, minutes=30))).timestamp()
    ended = task(status=TaskState.COMPLETED, execution_time=1.0)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        time.tzset()
        live: list[View] = [kind(task(), {}, seen_at=seen_at) for kind in (TaskLine, TaskCard)]
        live.append(AnswerView(task(), [], "The answer", seen_at))
        shown = [text for view in live for text in view.bundle().values() if isinstance(text, str)]
    time.tzset()
    assert len(shown) == 6
    assert all("as of 30 Nov 01:17" in text for text in shown)
    final: list[View] = [TaskLine(ended, {}), TaskCard(ended, {}), AnswerView(ended, [], ""), TaskTable(page(ended), {})]
    assert not any("as of" in str(text) for view in final for text in view.bundle().values())
    for view in (TaskTable(page(ended, task()), {}), status(), DeviceTable(status().devices), WorkerTable([worker()], {})):
        assert all(re.search(r"as of \d+ \w+ \d\d:\d\d", text) for text in view.bundle().values())


def test_long_name_and_message_leave_room_for_figures() -> None:
    progress = {"n": 5, "total": 20, "message": f"{'step ' * 40}loss 0.125", "remaining": 7.6}
    text = TaskLine(task(name="n" * 200, progress=progress), {}).text()
    assert "25% (5 of 20) · about 8 s left" in text
    assert re.search(r"loss 0\.125 · as of [^·]+ · task_1$", text)
    assert len(text) < 220


def test_id_is_complete_in_short_form() -> None:
    whole = "task_01m8p49ysz2ean04k2bc"
    for view in (TaskLine(task(task_id=whole), {}), TaskTable(page(task(task_id=whole)), {})):
        assert re.search(rf'<code class="i[^"]*" title="{whole}">{whole}</code>', str(view.html()))


@pytest.mark.parametrize(("n", "percent"), [(5, 25), (-5, 0), (25, 100)])
def test_bar_is_as_long_as_the_progress_within_its_bounds(n: float, percent: int) -> None:
    html = str(TaskLine(task(progress=Progress(n=n, total=20, message=None, remaining=None)), {}).html())
    assert f"width:{percent}.0%" in html
    assert f'aria-valuenow="{percent}"' in html


def test_tables_and_cards_are_values() -> None:
    table = TaskTable(page(task(), task(task_id="task_2")), {})
    assert [entry.task_id for entry in table] == ["task_1", "task_2"]
    assert TaskTable(page(), {}).text() == "No tasks"
    assert TaskTable(page(), {}, {"state": "failed", "owner": "ann"}).text() == "No tasks with state failed, owner ann"
    card = ResultCard(task(status=TaskState.COMPLETED), {"gflops": 12.5})
    assert card["gflops"] == 12.5
    assert card == {"gflops": 12.5}


def test_status_of_embedded_runtime_says_how_to_share_a_queue() -> None:
    shared = status()
    assert "jupyter openruntime" not in shared.text()
    assert "jupyter openruntime" in Status("embedded", shared.health, shared.devices).text()


def test_status_shows_problems() -> None:
    shown = status("see `%openruntime doctor`")
    assert "! device_0: see `%openruntime doctor`" in shown.text()
    assert "! device_0: see <code>%openruntime doctor</code>" in shown.html()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "—"),
        (0.00042, "420 µs"),
        (59.96, "1 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_have_a_suitable_unit(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, "0.1235"),
        (98765.4, "98,765"),
        (1.5e-7, "1.5e-07"),
        (True, "True"),
    ],
)
def test_numbers_have_four_significant_digits(value: object, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(("position", "expected"), [(1, "next"), (2, "2nd"), (11, "11th"), (22, "22nd"), (1013, "1,013th")])
def test_queue_positions_are_ordinals(position: int, expected: str) -> None:
    assert ordinal(position) == f"{expected} in line"


def test_local_times_across_daylight_saving_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        told = local_times("from 2020-10-24T23:30Z, worst at 00:30Z, until 01:30:20Z", "2020-10-25T02:00:00.000000Z")
        assert told == "from 2020-10-25 01:30, worst at 2020-10-25 02:30, until 2020-10-25 02:30:20"
        assert [clock(f"2020-10-25T0{hour}:00:00.000000Z") for hour in range(3)] == [f"2020-10-25 0{hour}:00" for hour in (2, 2, 3)]
        assert [clock(f"2020-03-29T0{moment}:00.000000Z") for moment in ("0:59", "1:00")] == ["2020-03-29 01:59", "2020-03-29 03:00"]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seconds_per_iteration", 0.00052884, "529 µs"),
        ("gflops_best", 63.0, "63 GFLOP/s"),
        ("bytes_per_iteration", 1_200_000, "1.20 MB"),
        ("iterations", 3, None),
        ("gflops", True, None),
    ],
)
def test_result_fields_have_units(name: str, value: object, expected: str | None) -> None:
    assert with_unit(name, value) == expected


def test_column_headings_have_units() -> None:
    assert [unit_head(name) for name in ("gflops", "gb_per_second_best", "formula_of")] == ["GFLOP/s", "GB/s, best", "formula of"]
    record = {"gflops": 2.0, "seconds_per_iteration": {"min": 1}}
    card = ResultCard(task(status=TaskState.COMPLETED), {"gflops": 12.5, "operations": {"add": record, "exp": record}})
    assert "12.5 GFLOP/s" in card.text()
    assert "GFLOP/s\nadd  2" in card.text()


def test_findings_use_local_time_except_in_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that findings use local time like the tables next to them."""
    told = 'from 14:30:20Z to 2020-01-02T20:00Z, in `call`: "it ended at 14:30:20Z `so`"'
    finding = Finding(kind="failures", severity="warning", text=told, advice="Ask `%openruntime result`.")
    known: dict[str, Any] = {"metric_type": "errors", "timeframe": "7d", "timestamp": "2020-01-03T21:00:00.000000Z", "worded_by": "none"}
    report = Insights.model_construct(insights=told, findings=[finding], **known)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        time.tzset()
        card = InsightsCard(report)
        text, html = card.text(), card.html()
    time.tzset()
    for shown in (text, html):
        assert "from 2020-01-03 20:00:20 to 2020-01-03 01:30, in" in shown
    assert '"it ended at 14:30:20Z `so`"' in text
    assert "<code>call</code>" in html
    assert "ended at 14:30:20Z `so`" in html
    assert "<code>%openruntime result</code>" in html


def test_workers_of_one_device_have_no_device_column() -> None:
    known = {"state": "idle", "interpreter": "python", "started_at": NOW, "tasks": 1, "device_time_s": 1.0}
    workers = [Worker.model_validate({**known, "id": f"worker_{number}", "device": "device_0"}) for number in range(2)]
    devices = {"device_0": "a chip", "device_1": "another"}
    assert WorkerTable(workers, devices).text().splitlines()[0].startswith("2 workers · on a chip")
    assert "device" not in WorkerTable(workers, devices).text().splitlines()[1].split()
    workers[1].device = "device_1"
    assert [line.split()[1] for line in WorkerTable(workers, devices).text().splitlines()[1:]] == ["device", "a", "another"]


@pytest.mark.parametrize(("free", "said"), [(4e9, "4.00 of 8.00 GB"), (4e8, "400 MB of 8.00 GB")])
def test_free_memory_shows_a_common_unit_once(free: float, said: str) -> None:
    device = status().devices[0].model_copy(update={"memory_available": int(free), "memory_total": 8_000_000_000})
    assert said in DeviceTable([device]).text()


def test_hosts_show_their_states_figures_and_what_to_do() -> None:
    ready = host(name="mac2", devices=["mac2.device_0"], slots=2, running=1, memory_total=32e9, memory_available=8e9, round_trip_s=0.0021)
    lost = host(name="gpu1", state="lost", problem="no answer for 15 s", advice="wake it")
    table = HostTable([ready, lost])
    assert table.caption.startswith("2 hosts, 1 lost")
    assert {"mac2", "device_0", "1 of 2", "8.00 of 32.0 GB", "2.1 ms"} <= set(re.split(r"\s{2,}", table.text().replace("\n", "  ")))
    assert "gpu1: no answer for 15 s: wake it" in table.text()
    assert "2 hosts, 1 lost" in Status("here", status().health, [], [ready, lost]).text()
    assert "host" not in Status("here", status().health, [], []).text()


def test_device_of_a_host_names_its_host() -> None:
    (mine,) = status().devices
    assert device_name(mine) == mine.name
    assert device_name(mine.model_copy(update={"id": "10.0.0.7.device_0", "name": "Apple M3"})) == "Apple M3 on 10.0.0.7"
