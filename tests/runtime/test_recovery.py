"""Tasks that a dead runtime left, between their taking over and their place in a lane."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from openruntime_jupyter.errors import TaskConflict
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.tasks import recovery
from tests.runtimes import busy, completed, ended, python_that, runtime_in, submit


async def left_behind(folder: Path, count: int) -> list[str]:
    """The ids of tasks that an ended runtime has left waiting, in the order of their submission."""
    async with runtime_in(folder) as first:
        await busy(first)
        return [await submit(first, "call", wait=False) for _ in range(count)]


def held_back(folder: Path, ready: Path) -> AbstractAsyncContextManager[Runtime]:
    """Return a runtime whose workers can't be started before the file `ready` exists."""
    return runtime_in(folder / "data", interpreter=python_that(folder, f"[ -e {ready} ] || exit 3\n"))


async def test_recovered_task_can_be_cancelled_and_moved_without_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "RETRY_SECONDS", 0.1)

    first, second, third = await left_behind(tmp_path / "data", 3)
    async with held_back(tmp_path, tmp_path / "ready") as runtime:
        subscription, _ = runtime.bus.subscribe()
        assert [(await runtime.tasks.get(task_id)).status for task_id in (first, second, third)] == ["pending"] * 3
        cancelled = await asyncio.wait_for(runtime.cancel(first), 10)
        assert (cancelled.status, cancelled.cancel_stage, cancelled.here) == ("cancelled", "queue", True)
        assert cancelled.failure is not None
        assert cancelled.failure.kind == "cancelled"
        assert cancelled.finished_at is not None
        moved = await runtime.reprioritise(third, 10)
        assert (moved.status, moved.priority) == ("pending", 10)
        with pytest.raises(TaskConflict, match="cancelled"):
            await runtime.reprioritise(first, 10)
        (tmp_path / "ready").touch()
        ends = [await ended(runtime, task_id) for task_id in (first, second, third)]
        assert [task.status for task in ends] == ["cancelled", "completed", "completed"]
        assert (ends[2].started_at or "") < (ends[1].started_at or "")
        subscription.close()
        heard = [event.body["data"] async for event in subscription]
        assert [item["status"] for item in heard if item["task_id"] == first] == ["cancelled"]
        (output_event,) = (item for item in heard if item["task_id"] == first)
        assert set(output_event) == set(next(item for item in heard if item["task_id"] == second))


async def test_recovered_task_waits_for_a_device_across_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "RETRY_SECONDS", 0.05)

    ids = await left_behind(tmp_path / "data", 2)
    async with held_back(tmp_path, tmp_path / "never") as runtime:
        await asyncio.sleep(0.5)
        assert runtime.health().status == "degraded"
        assert [(await runtime.tasks.get(task_id)).status for task_id in ids] == ["pending"] * 2
    async with runtime_in(tmp_path / "data") as later:
        assert [(await ended(later, task_id)).status for task_id in ids] == ["completed"] * 2


async def test_invalid_recovered_task_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, even = await left_behind(tmp_path, 2)
    request = recovery._request

    def refuses(task):
        return request(task.model_copy(update={"priority": 11}) if task.task_id == odd else task)

    monkeypatch.setattr(recovery, "_request", refuses)
    async with runtime_in(tmp_path) as runtime:
        await completed(runtime, even)
        task = await ended(runtime, odd)
        assert task.status == "failed"
        assert "could not be queued again" in (task.error or "")
        assert "priority" in (task.error or "")
