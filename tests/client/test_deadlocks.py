"""Deadlock check: a task may wait for another lane, but not for its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from openruntime_jupyter.client.client import Client
from openruntime_jupyter.client.handles import in_worker, lane_of
from openruntime_jupyter.client.transport.protocol import Backend
from openruntime_jupyter.current_task import set_current
from openruntime_jupyter.errors import WouldDeadlock
from openruntime_jupyter.operations.context import TaskContext
from openruntime_jupyter.schemas.system import Device


def device(name: str, kind: str) -> Device:
    known: dict[str, Any] = {
        "id": name,
        "name": name,
        "type": kind,
        "status": "available",
        "capabilities": [],
        "memory_total": 1,
        "memory_available": 1,
    }
    return Device.model_validate(known)


CPU = [device("device_0", "cpu")]
BOTH = [device("device_0", "gpu"), device("device_1", "cpu")]


@pytest.mark.parametrize(
    ("wanted", "devices", "expected"),
    [
        ("auto", CPU, "cpu"),
        ("gpu", CPU, "cpu"),
        ("cpu", CPU, "cpu"),
        ("auto", BOTH, "gpu"),
        ("gpu", BOTH, "gpu"),
        ("cpu", BOTH, "cpu"),
        ("device_1", BOTH, "cpu"),
        ("device_0", BOTH, "gpu"),
    ],
)
def test_a_preference_leads_to_the_lane_that_the_scheduler_takes(wanted: str, devices: list[Device], expected: str) -> None:
    assert lane_of(wanted, devices) == expected


@pytest.fixture
def in_a_task_on() -> Iterator[Any]:
    yield lambda kind: set_current(TaskContext("task_me", kind))
    set_current(None)


def test_a_task_waits_for_another_lane(client: Client, in_a_task_on: Any) -> None:
    handle = client.submit("matrix_multiply", size=8)
    in_a_task_on("gpu")
    assert in_worker()
    assert handle.result(timeout=30)["m"] == 8


def test_a_task_does_not_even_submit_what_it_would_wait_for_in_vain(client: Client, in_a_task_on: Any) -> None:
    before = client.tasks().total_count
    in_a_task_on("cpu")
    with pytest.raises(WouldDeadlock, match="block a new task, because task_me holds"):
        client.run("matrix_multiply", size=8)
    assert client.tasks().total_count == before


def test_a_task_may_read_what_has_ended(client: Client, in_a_task_on: Any) -> None:
    handle = client.submit("matrix_multiply", size=8)
    handle.wait(30)
    in_a_task_on("cpu")
    assert client.task(handle.id).result()["m"] == 8


def test_a_process_that_a_task_started_waits_for_no_lane(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRUNTIME_WORKER", "1")
    with pytest.raises(WouldDeadlock, match="the task that started this process"):
        Client(backend).call(lambda: 1)
