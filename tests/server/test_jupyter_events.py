from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jupyter_events import EventLogger

from openruntime_jupyter.runtime.events import EventBus
from openruntime_jupyter.server.jupyter_events import SCHEMA, TaskEvents
from tests.support import JUPYTER, running_server

CONFIG = """
import logging
c.EventLogger.handlers = [logging.FileHandler({path!r})]
"""
RULES = json.loads(SCHEMA.read_text())


def update(status: str, **more: Any) -> dict[str, Any]:
    same = {"task_id": "task_1", "operation": "compute", "owner": "ada", "priority": 5, "attempt": 1, "device_used": None}
    return {**same, "status": status, "execution_time": None, "name": None, "error": None, **more}


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events in a log without Jupyter's fields, after validating each against the schema."""
    found = []
    for line in text.splitlines():
        told = json.loads(line)
        if told["__schema__"] == RULES["$id"]:
            assert told["__schema_version__"] == RULES["version"]
            event = {name: value for name, value in told.items() if not name.startswith("__") and name != "taskName"}
            jsonschema.validate(event, RULES)
            found.append(event)
    return found


def logger_to(sink: io.StringIO) -> EventLogger:
    return EventLogger(handlers=[logging.StreamHandler(sink)])


def test_event_handler_gets_all_states_of_task(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(log)))
    with running_server(tmp_path, JUPYTER, f"--config={tmp_path / 'config.py'}") as server:
        done = server.submit("matrix_multiply", {"size": 64, "iterations": 1}, priority=7)
        failed = server.submit("python", {"code": "1 / 0"})
        running = server.submit("python", {"code": "import time\nwhile True: time.sleep(0.01)"}, wait=False)
        assert server.request("DELETE", f"/tasks/{running['task_id']}").status_code == 200
        left = server.submit("python", {"code": "import time\nwhile True: time.sleep(0.01)"}, wait=False)
        server.stop()
        found = events_of(log.read_text())
    last = {event["task_id"]: event for event in found}
    assert {task["task_id"]: last[task["task_id"]]["state"] for task in (done, failed, running, left)} == {
        done["task_id"]: "completed",
        failed["task_id"]: "failed",
        running["task_id"]: "cancelled",
        left["task_id"]: "interrupted",
    }
    event = last[done["task_id"]]
    assert (event["operation"], event["priority"], event["device"]) == ("matrix_multiply", 7, done["device_used"])
    assert event["execution_time"] == pytest.approx(done["execution_time"])
    assert event["owner"] == done["owner"]


def test_each_state_is_emitted_once() -> None:
    sink = io.StringIO()
    emitter = TaskEvents(logger_to(sink))
    for told in (update("pending"), update("pending", priority=9), update("running"), update("running"), update("completed")):
        emitter.emit(told)
    assert [event["state"] for event in events_of(sink.getvalue())] == ["pending", "running", "completed"]
    assert not emitter._states


def test_event_without_handler_is_not_created() -> None:
    logger = EventLogger()
    emitted = []
    real = logger.emit
    logger.emit = lambda **options: emitted.append(real(**options))  # type: ignore[method-assign]
    TaskEvents(logger).emit(update("completed"))
    assert emitted == [None]


def test_failing_event_handler_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logger_to(io.StringIO())
    emitter = TaskEvents(logger)

    def broken(schema_id: str, data: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("a modifier of somebody's")

    logger.add_modifier(schema_id=RULES["$id"], modifier=broken)
    with caplog.at_level(logging.ERROR, "openruntime_jupyter"):
        for _ in range(3):
            emitter.emit(update("completed"))
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_burst_of_events_is_resumed_from_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openruntime_jupyter.server.jupyter_events.BOUND", 10)
    bus, sink = EventBus(), io.StringIO()
    following = asyncio.ensure_future(TaskEvents(logger_to(sink)).follow(bus))
    await asyncio.sleep(0)
    bus.publish("task_update", {"data": update("completed", task_id="task_0")}, replay=True)
    while "task_0" not in sink.getvalue():
        await asyncio.sleep(0)
    for number in range(1, 100):
        bus.publish("task_update", {"data": update("completed", task_id=f"task_{number}")}, replay=True)
    while "task_99" not in sink.getvalue():
        await asyncio.sleep(0.001)
    bus.close()
    await asyncio.wait_for(following, 5)
    assert [event["task_id"] for event in events_of(sink.getvalue())] == [f"task_{number}" for number in range(100)]
