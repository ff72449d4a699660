from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.schemas.queries import TasksQuery
from tests.runtimes import busy, completed, runtime_in, submit, waits_for


async def test_waiting_task_names_holder_in_another_runtime(tmp_path: Path) -> None:
    async with (
        runtime_in(tmp_path, device_lock="all", label="http://one") as one,
        runtime_in(tmp_path, device_lock="all", label="http://two") as two,
    ):
        holder = await busy(one, name="long training", wait=False)
        waits = await submit(two, "call", name="quick")
        await waits_for(two, waits, "http://one runs long training")
        seen = await two.tasks.get(holder)
        assert (seen.here, seen.runtime, seen.status) == (False, one.id, "running")
        assert {task.task_id: task.here for task in (await two.list_tasks(TasksQuery())).tasks} == {holder: False, waits: True}
        with pytest.raises(TaskConflict, match=one.id):
            await two.cancel(holder)
        behind = [await submit(one, "call", wait=False) for _ in range(2)]
        for limit, offset, wanted in ((10, 0, [waits, *behind]), (1, 0, [waits]), (1, 1, behind[:1]), (5, 2, behind[1:])):
            page = await two.list_tasks(TasksQuery(limit=limit, offset=offset, order="next"))
            assert ([task.task_id for task in page.tasks], page.total_count) == (wanted, 3), "those of the other runtime come last"
        await one.cancel(holder)
        await completed(two, waits)
        assert (await two.tasks.wait(holder, 5)).status == "cancelled"


async def test_wait_for_device_can_be_cancelled(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, device_lock="all") as one, runtime_in(tmp_path, device_lock="all") as two:
        holder = await busy(one)
        waits = await submit(two, "call")
        await asyncio.sleep(0.2)
        assert (await two.cancel(waits)).cancel_stage == "queue"
        await one.cancel(holder)
        for runtime in (two, one, two):
            await completed(runtime, await submit(runtime, "call"))
