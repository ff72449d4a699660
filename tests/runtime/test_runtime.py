from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import pytest

from openruntime_jupyter.errors import Stopping, StorageUnavailable, TaskConflict, TaskNotFound
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.schemas.tasks import Task, TaskRequest
from tests.runtimes import ME, busy, cell, completed, ended, pickled, printed, runtime_in, submit, until, value


def since(others: Collection[psutil.Process] = ()) -> set[psutil.Process]:
    """The processes that this one has started, but for `others`: servers that several tests share."""
    return set(psutil.Process().children()) - set(others)


async def test_key_of_unstored_task_is_used_for_the_retry(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    request = TaskRequest(operation="call", parameters={}, wait=False)

    async def full(task: object, key: object) -> None:
        raise StorageUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.history, "commit_new", full)
        with pytest.raises(StorageUnavailable):
            await runtime.submit(request, ME, "key")
    task = await runtime.submit(request, ME, "key")
    await completed(runtime, task.task_id)
    assert (await runtime.submit(request, ME, "key")).task_id == task.task_id


async def test_next_runtime_takes_over_pending_asynchronous_tasks(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as first:
        running = await busy(first, wait=False)
        later = await submit(first, "call", pickled(_answer), wait=False, priority=7, name="later")
        gone = await submit(first, "call")
    async with runtime_in(tmp_path) as second:
        task = await ended(second, later)
        assert (task.status, task.priority, task.name, task.owner, task.runtime) == ("completed", 7, "later", "me", second.id)
        assert await value(second, later) == "answer"
        assert (await second.tasks.get(running)).status == "interrupted"
        assert await printed(second, running) == "in\n"
        assert (await second.tasks.get(gone)).status == "interrupted"


def _answer() -> str:
    return "answer"


@pytest.mark.every_engine
@pytest.mark.not_over("dask", reason="its worker is not a process of the runtime")
async def test_stopped_runtime_leaves_no_process_and_rejects_tasks(tmp_path: Path) -> None:
    others = since()
    runtime = Runtime(Settings(data_dir=tmp_path, cpu_slots=2))
    await runtime.start()
    await busy(runtime, "print('in', flush=True)\nimport subprocess; subprocess.run(['sleep', '600'])")
    assert since(others)
    await runtime.stop()
    await until(lambda: not since(others), 5, "the end of the workers")
    with pytest.raises(Stopping):
        await submit(runtime, "call")
    await runtime.stop()  # twice is once
    assert not list((tmp_path / "runtimes").glob("*"))


async def test_stop_during_start_of_first_worker_leaves_no_process(tmp_path: Path) -> None:
    others = since()
    for pause in (0.0, 0.01, 0.03):
        runtime = Runtime(Settings(data_dir=tmp_path))
        await runtime.start()
        await asyncio.sleep(pause)
        await runtime.stop()
        await until(lambda: not since(others), 5, "the end of the workers")


async def test_ended_task_keeps_output_and_payload_until_purged(tmp_path: Path) -> None:
    async with runtime_in(tmp_path) as first:
        task_id = await submit(first, "python", {"code": "print('kept')\nlarge = b'x' * 3_000_000", "outputs": ["large"]})
        await ended(first, task_id)
        assert len((await value(first, task_id))["large"]) == 3_000_000
    async with runtime_in(tmp_path) as second:
        assert await printed(second, task_id) == "kept\n"
        assert len((await value(second, task_id))["large"]) == 3_000_000
        assert len(list((tmp_path / "payloads").iterdir())) == 1
        await second.purge(task_id)
        with pytest.raises(TaskNotFound):
            await second.tasks.get(task_id)
        assert not list((tmp_path / "payloads").iterdir())


async def test_task_purged_while_its_end_is_written_stays_deleted(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    written, commit = asyncio.Event(), runtime.history.commit

    async def cooperatively(task: Task) -> None:
        if task.status.terminal:
            await written.wait()
        await commit(task)

    monkeypatch.setattr(runtime.history, "commit", cooperatively)
    task_id = await submit(runtime, "call", wait=False)
    await until(lambda: (entry := runtime.tasks.find(task_id)) is not None and entry.state.terminal, what="the end of the task")
    purging = asyncio.ensure_future(runtime.purge(task_id))
    await asyncio.sleep(0)
    written.set()
    await purging
    with pytest.raises(TaskNotFound):
        await runtime.tasks.get(task_id)


async def test_failing_step_of_stop_does_not_prevent_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = since()
    runtime = Runtime(Settings(data_dir=tmp_path))
    await runtime.start()
    await ended(runtime, await submit(runtime, "call"))

    async def breaks() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(runtime.scheduler, "stop", breaks)
    await runtime.stop()
    await until(lambda: not since(others), 5, "the end of the workers")


async def test_metrics_are_plausible_or_null(runtime: Runtime) -> None:
    await ended(runtime, await submit(runtime, "call"))
    metrics, devices = runtime.metrics(), runtime.devices()
    assert metrics.gpu_utilization == 0.0, "there is no GPU"
    assert 0 < (metrics.memory_usage or 0) < 100
    assert (metrics.active_tasks, metrics.ai_tasks_processed) == (0, 0)
    assert devices[0].memory_total <= psutil.virtual_memory().total
    assert 0 < devices[0].memory_available <= devices[0].memory_total
    task = await ended(runtime, await submit(runtime, "call", pickled(_allocate, 50_000_000)))
    assert 50 <= (task.performance_metrics.memory_used_mb or 0) < 1000
    assert (task.performance_metrics.peak_memory_mb or 0) > 50
    assert 0 <= (task.performance_metrics.execution_time_ms or -1) < 60_000
    assert runtime.health().status == "healthy"
    assert len(runtime.system_metrics().uptime.split()) in (1, 2)


def _allocate(size: int) -> int:
    import mlx.core as mx

    array = mx.zeros((size,), dtype=mx.uint8) + 1
    mx.eval(array)
    time.sleep(0.3)  # long enough to be seen
    last: Any = array[-1].item()
    return int(last)


async def test_metrics_are_published_only_with_subscribers(tmp_path: Path) -> None:
    async with runtime_in(tmp_path, sample_interval=0.05, idle_sample_interval=600.0) as runtime:
        before = runtime.metrics_service._sampler.latest
        subscription, _ = runtime.bus.subscribe(("metrics",))
        heard = []
        async for event in subscription:
            heard.append(event.body["metrics"]["memory_usage"])
            if len(heard) == 3:
                subscription.close()
        assert all(heard)
        assert runtime.metrics_service._sampler.latest is not before
        await until(lambda: not runtime.metrics_service._sampler._watched, 5, "the sampler rests again")


async def test_data_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    before = os.umask(0)
    try:
        async with runtime_in(folder) as runtime:
            await ended(runtime, await submit(runtime, "python", {"code": "x = b'x' * 2_000_000", "outputs": ["x"]}))
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        if "mlx" not in path.parts:
            assert path.stat().st_mode & 0o077 == 0, path


async def test_task_taken_over_by_another_runtime_does_not_run(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "ran"
    holder = await busy(runtime)
    waits = await cell(runtime, f"open({str(mark)!r}, 'w')", wait=False)
    commit = runtime.history.commit

    async def theirs(task: Task) -> None:
        if task.task_id == waits:
            raise TaskConflict("taken over by another runtime")
        await commit(task)

    monkeypatch.setattr(runtime.history, "commit", theirs)
    await runtime.cancel(holder)
    await completed(runtime, await submit(runtime, "call"))
    assert not mark.exists()


async def test_full_disk_rejects_asynchronous_tasks_only(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*arguments: object) -> None:
        raise StorageUnavailable("the disk is full")

    monkeypatch.setattr(runtime.history, "commit", full)
    monkeypatch.setattr(runtime.history, "remember_key", full)
    with pytest.raises(StorageUnavailable):
        await submit(runtime, "call", wait=False)
    task = await runtime.submit(TaskRequest(operation="call", parameters={}), ME, "another key")
    await completed(runtime, task.task_id)


async def test_unusable_data_folder_is_reported_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageUnavailable, match="OPENRUNTIME_DATA_DIR"):
        await Runtime(Settings(data_dir=tmp_path / "file" / "data")).start()
