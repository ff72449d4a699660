"""A task's record and its news, as its runtime makes them without validation."""

from __future__ import annotations

from pathlib import Path

from openruntime_jupyter.runtime.runtime import Caller
from openruntime_jupyter.runtime.tasks.entry import NEWS
from openruntime_jupyter.schemas.tasks import Task, TaskRequest, TaskState
from tests.runtimes import runtime_in


async def test_unchecked_record_equals_validated_one(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        request = TaskRequest(operation="call", parameters={}, name="a name", wait=False)
        records = [await runtime.submit(request, Caller(owner="somebody"))]
        records += [await runtime.tasks.wait(records[0].task_id), await runtime.tasks.wait(records[0].task_id, parameters=False)]
        assert records[1].status is TaskState.COMPLETED
        for record in records:
            assert set(vars(record)) == record.model_fields_set == set(Task.model_fields)
            assert Task.model_validate_json(record.model_dump_json()) == record
        records[0].status = TaskState.FAILED
        assert records[1].status is TaskState.COMPLETED


async def test_event_equals_record(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        subscription, _ = runtime.bus.subscribe()
        task_id = await runtime.submission.submit(TaskRequest(operation="call", parameters={}), Caller())
        record = await runtime.tasks.wait(task_id)
        last = await anext(event.body async for event in subscription if event.body["data"]["status"] == "completed")
        subscription.close()
        assert last == {"type": "task_update", "data": record.model_dump(mode="json", include=set(NEWS))}


async def test_ended_task_is_counted_in_metrics(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as runtime:
        for number in range(1, 4):
            await runtime.tasks.wait(await runtime.submission.submit(TaskRequest(operation="call", parameters={}), Caller()))
            runtime.metrics()
            assert runtime.metrics_service.counters.ended["completed", "call"] == number
