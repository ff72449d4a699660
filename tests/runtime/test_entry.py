"""Records, events and completion of a task."""

from __future__ import annotations

from typing import Any

import pytest

from openruntime_jupyter.runtime.runtime import Caller, Runtime
from openruntime_jupyter.runtime.tasks.entry import EVENT_FIELDS
from openruntime_jupyter.schemas.tasks import Task, TaskRequest, TaskState
from tests.runtimes import completed, submit, until


async def test_unchecked_record_equals_validated_one(runtime: Runtime) -> None:
    request = TaskRequest(operation="call", parameters={}, name="a name", wait=False)
    records = [await runtime.submit(request, Caller(owner="somebody"))]
    records += [await runtime.tasks.wait(records[0].task_id), await runtime.tasks.wait(records[0].task_id, parameters=False)]
    assert records[1].status is TaskState.COMPLETED
    for record in records:
        assert set(vars(record)) == record.model_fields_set == set(Task.model_fields)
        assert Task.model_validate_json(record.model_dump_json()) == record
    records[0].status = TaskState.FAILED
    assert records[1].status is TaskState.COMPLETED


async def test_event_equals_record(runtime: Runtime) -> None:
    subscription, _ = runtime.bus.subscribe()
    task_id = await runtime.submission.submit(TaskRequest(operation="call", parameters={}), Caller())
    record = await runtime.tasks.wait(task_id)
    last = await anext(event.body async for event in subscription if event.body["data"]["status"] == "completed")
    subscription.close()
    assert last == {"type": "task_update", "data": record.model_dump(mode="json", include=set(EVENT_FIELDS))}


async def test_synchronous_caller_resumes_before_the_event(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    publish = runtime.bus.publish

    def publishing(topic: str, body: dict[str, Any], **options: Any) -> None:
        if topic == "task_update" and body["data"]["status"] == "completed":
            told.append(body["data"]["task_id"])
        publish(topic, body, **options)

    monkeypatch.setattr(runtime.bus, "publish", publishing)
    for _ in range(5):
        task_id = await submit(runtime, "compute", wait=True)
        await completed(runtime, task_id)
        assert told == []
        await until(lambda: told, what="the event")
        assert told.pop() == task_id
