"""Queues and lanes of a machine with two GPUs. The workers are real and compute on the CPU."""

from __future__ import annotations

import asyncio
import cProfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.cluster import Simulation
from openruntime_jupyter.engines import local
from openruntime_jupyter.engines.local import LocalEngine, LocalOptions
from openruntime_jupyter.engines.protocol import DeviceReport, Job, ModelUse, Observer, Outcome
from openruntime_jupyter.errors import MemoryRefused, UnknownDevice
from openruntime_jupyter.memory import Machine
from openruntime_jupyter.runtime.queue.admission import Admission
from openruntime_jupyter.runtime.queue.lane import Blocked, Lane
from openruntime_jupyter.runtime.queue.lanes import Lanes
from openruntime_jupyter.runtime.runtime import Runtime
from openruntime_jupyter.runtime.settings import Settings
from openruntime_jupyter.runtime.tasks.entry import Entry, QueueKey
from openruntime_jupyter.schemas.queries import TasksQuery
from openruntime_jupyter.schemas.tasks import Task
from openruntime_jupyter.schemas.values import ModelSource
from tests.runtimes import busy, cell, completed, ended, failed, says, submit, until, waits_for

GIB = 1 << 30
BURST = {"burst": "one"}
NO_DEVICE = ("gpu", 9)
"""Type and index of a device that MLX rejects, so that no worker can use it."""


class TwoGpus(LocalEngine):
    """Local engine that reports two GPUs with the memory of `sizes`. Workers of the `dead` lanes can't select their device."""

    dead: frozenset[str] = frozenset()
    sizes = (24 * GIB, 24 * GIB)

    async def devices(self, interpreter: str | None = None) -> list[DeviceReport]:
        found = await super().devices(interpreter)
        gpu = replace(found[0], type="gpu", name="a GPU", capabilities=("cuda", "mlx"), blas=None, advice=None)
        return [*(replace(gpu, index=index, memory=size) for index, size in enumerate(self.sizes)), *found]

    async def run(self, job: Job, observer: Observer) -> Outcome:
        device_type, device_index = NO_DEVICE if job.lane in self.dead else ("cpu", 0)
        return await super().run(replace(job, device_type=device_type, device_index=device_index), observer)


@asynccontextmanager
async def two_gpus(folder: Path, dead: frozenset[str] = frozenset(), **settings: Any) -> AsyncIterator[Runtime]:
    known = Settings(data_dir=folder, cpu_slots=1, spare_workers=0, **settings)
    engine = TwoGpus(LocalOptions(known.payloads, known.temporary))
    engine.dead = dead
    runtime = Runtime(known, engine)
    await runtime.start()
    try:
        await until(lambda: len(runtime.devices()) == 3, 30, "the devices")
        yield runtime
    finally:
        await runtime.stop()


@pytest.fixture(scope="module")
def runtime(jp_asyncio_loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    context = two_gpus(tmp_path_factory.mktemp("runtime"))
    yield jp_asyncio_loop.run_until_complete(context.__aenter__())
    jp_asyncio_loop.run_until_complete(context.__aexit__(None, None, None))


def slots_of(lane: str) -> int:
    """Return the number of slots of such lanes, over all runtimes."""
    return sum(task.get_name() == f"{lane}.0" for task in asyncio.all_tasks())


async def used(runtime: Runtime, task_id: str) -> str | None:
    return (await runtime.tasks.get(task_id)).device_used


async def started_in_order(runtime: Runtime, ids: list[str]) -> list[Task]:
    tasks = [await completed(runtime, task_id) for task_id in ids]
    return sorted(tasks, key=lambda task: task.started_at or "")


async def test_auto_tasks_use_both_devices(runtime: Runtime) -> None:
    holders = [await busy(runtime) for _ in range(2)]
    assert {await used(runtime, holder) for holder in holders} == {"device_0", "device_1"}
    third = await submit(runtime, "call", BURST)
    assert [device.pending for device in runtime.devices()] == [1, 1, 0]
    assert (await runtime.tasks.get(third)).position == 1
    await runtime.cancel(holders[1])
    assert (await completed(runtime, third)).device_used == await used(runtime, holders[1])
    await runtime.cancel(holders[0])


async def test_task_for_a_device_waits_for_it_alone(runtime: Runtime) -> None:
    holder = await busy(runtime, device_preference="device_1")
    waits = await submit(runtime, "call", BURST, device_preference="device_1", priority=10)
    for preference in ("auto", "gpu", "device_0"):
        assert (await completed(runtime, await submit(runtime, "call", BURST, device_preference=preference))).device_used == "device_0"
    assert (await completed(runtime, await submit(runtime, "call", BURST, device_preference="cpu"))).device_used == "device_2"
    assert (await runtime.tasks.get(waits)).status == "pending"
    await runtime.cancel(holder)
    assert (await completed(runtime, waits)).device_used == "device_1"
    with pytest.raises(UnknownDevice, match="known are auto, gpu, cpu, device_0, device_1, device_2"):
        await submit(runtime, "call", device_preference="device_3")


async def test_priority_holds_over_queues(runtime: Runtime) -> None:
    holders = [await busy(runtime, device_preference=f"device_{number}") for number in range(2)]
    order = [("auto", 1), ("gpu", 8), ("device_0", 5), ("auto", 10), ("device_0", 9), ("auto", 5)]
    ids = [await submit(runtime, "call", BURST, device_preference=preference, priority=priority) for preference, priority in order]
    wanted = [ids[index] for index in (3, 4, 1, 2, 5, 0)]
    listed = (await runtime.list_tasks(TasksQuery(order="next"))).tasks
    assert [task.task_id for task in listed] == wanted
    # Before an `auto` task count those that device_1 takes first: not those for device_0.
    assert [task.position for task in listed] == [1, 2, 2, 4, 3, 4]
    await runtime.cancel(holders[0])
    assert [task.task_id for task in await started_in_order(runtime, ids)] == wanted
    await runtime.cancel(holders[1])


DIES_ONCE = """
import os, pathlib, signal, time
if not pathlib.Path({first!r}).exists():
    pathlib.Path({first!r}).touch()
    print('in', flush=True)
    while not pathlib.Path({go!r}).exists(): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_retry_prefers_another_device(runtime: Runtime, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task_id = await cell(runtime, DIES_ONCE.format(first=str(tmp_path / "first"), go=str(go)), retries=1)
    await says(runtime, task_id, "in")
    first = await used(runtime, task_id)
    go.touch()
    task = await completed(runtime, task_id)
    assert (task.attempt, {first, task.device_used}) == (2, {"device_0", "device_1"})


async def test_retry_uses_the_only_device_that_may_run_it(runtime: Runtime, tmp_path: Path) -> None:
    (go := tmp_path / "go").touch()
    code = DIES_ONCE.format(first=str(tmp_path / "first"), go=str(go))
    task = await completed(runtime, await cell(runtime, code, retries=1, device_preference="device_1"))
    assert (task.attempt, task.device_used) == (2, "device_1")


async def test_session_stays_on_its_device(runtime: Runtime) -> None:
    await completed(runtime, await cell(runtime, "x = 1", session="train", device_preference="device_1"))
    for _ in range(2):
        task = await completed(runtime, await cell(runtime, "x += 1", session="train"))
        assert task.device_used == "device_1"
    holder = await busy(runtime, device_preference="device_1")
    waits = await cell(runtime, "x += 1", session="train")
    await waits_for(runtime, waits, "'train', which is on device_1")
    await runtime.cancel(holder)
    assert (await completed(runtime, waits)).device_used == "device_1"


async def test_lane_leaves_and_joins_again(runtime: Runtime) -> None:
    lane = runtime.lanes.devices["device_1"]
    holders = [await busy(runtime, device_preference=f"device_{number}") for number in range(2)]
    auto, own = [await submit(runtime, "call", BURST, device_preference=preference) for preference in ("auto", "device_1")]
    runtime.scheduler.leave("device_1")
    await waits_for(runtime, own, "device_1, which is not available")
    assert (await runtime.tasks.get(holders[1])).status == "running"
    assert [device.id for device in runtime.devices()] == ["device_0", "device_2"]
    await runtime.cancel(holders[0])
    assert (await completed(runtime, auto)).device_used == "device_0"
    assert (await runtime.cancel(holders[1])).status == "cancelled"
    late = await submit(runtime, "call", BURST, device_preference="device_1")
    assert (await runtime.tasks.get(late)).position == 2
    joined = Lane(lane.id, lane.device, lane.slots, 30.0, lane.engine, lane.machine, lane.durations)
    runtime.scheduler.join(joined)
    for task_id in (own, late):
        assert (await completed(runtime, task_id)).device_used == "device_1"


async def test_dead_device_leaves_auto_tasks_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_WORKERS", 2)  # to save time
    async with two_gpus(tmp_path, dead=frozenset({"device_0"})) as runtime:
        ids = [await submit(runtime, "call", BURST) for _ in range(4)]
        tasks = [await completed(runtime, task_id) for task_id in ids]
        assert {(task.device_used, task.attempt) for task in tasks} == {("device_1", 1)}
        dead, working, _ = runtime.devices()
        assert (dead.status, working.status) == ("unavailable", "available")
        assert "can't run tasks" in (dead.advice or "")
        failure = await failed(runtime, await submit(runtime, "call", BURST, device_preference="device_0"))
        assert "can't run tasks" in failure.message
        # A working device takes tasks again after its pause.
        cast("TwoGpus", runtime.engine).dead = frozenset()
        await completed(runtime, await submit(runtime, "call", BURST, device_preference="device_0"))
        assert runtime.devices()[0].status == "available"


async def test_task_that_no_device_starts_fails_and_blames_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_WORKERS", 2)  # to save time
    async with two_gpus(tmp_path, dead=frozenset({"device_0", "device_1"})) as runtime:
        task = await ended(runtime, await submit(runtime, "call", BURST))
        assert (task.status, task.attempt) == ("failed", 1)
        assert [device.status for device in runtime.devices()] == ["available"] * 3


async def test_device_held_by_another_runtime_leaves_tasks_to_the_other(tmp_path: Path) -> None:
    async with two_gpus(tmp_path) as one, two_gpus(tmp_path) as two:
        holder = await busy(one, device_preference="device_0")
        for _ in range(3):
            assert (await completed(two, await submit(two, "call", BURST))).device_used == "device_1"
        waits = await submit(two, "call", BURST, device_preference="device_0")
        await waits_for(two, waits, "a GPU")
        slots = slots_of("device_0")
        two.scheduler.leave("device_0")
        await waits_for(two, waits, "device_0, which is not available")
        await until(lambda: slots_of("device_0") == slots - 1, 5, "the end of the slot that waits for the device")
        await one.cancel(holder)
        assert (await completed(one, await submit(one, "call", BURST, device_preference="device_0"))).device_used == "device_0"


async def test_large_task_uses_the_device_that_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoGpus, "sizes", (5_000_000, GIB))
    async with two_gpus(tmp_path) as runtime:
        holder = await busy(runtime, device_preference="device_1")
        waits = await submit(runtime, "matrix_multiply", {"size": 1000, "iterations": 1})
        await waits_for(runtime, waits, "more than device_0 has")
        assert (await completed(runtime, await submit(runtime, "call", BURST))).device_used == "device_0"
        await runtime.cancel(holder)
        assert (await completed(runtime, waits)).device_used == "device_1"
        # The size of this one is known from its graph only.
        graph = {"expression": "sum(outer(a, a))", "inputs": {"a": {"ones": [2000]}}}
        for _ in range(2):  # once each device is asked first
            task = await completed(runtime, await submit(runtime, "compute", graph))
            assert (task.device_used, task.attempt) == ("device_1", 1)
        with pytest.raises(MemoryRefused, match=r"1\.07 GB"):
            await submit(runtime, "matrix_multiply", {"size": 20_000})
        with pytest.raises(MemoryRefused, match=r"5\.0\d? MB"):
            await submit(runtime, "matrix_multiply", {"size": 1000}, device_preference="device_0")


# Without workers


def gpu_lane(number: int, slots: int = 1, kind: str = "gpu") -> Lane:
    report = DeviceReport(kind, number, "a GPU", GIB, ("cuda", "mlx"), "0")
    return Lane(f"device_{number}", report, slots, 30.0, cast("Any", None), Machine())


def joined(*lanes: Lane) -> Lanes:
    made = Lanes()
    for lane in lanes:
        made.join(lane)
    return made


class Waiting:
    """Pending task as far as queues see it."""

    waiting_for = drained_by = blocked_since = session = python = None
    avoids: tuple[str, ...] = ()
    needs: int | None = None

    def __init__(
        self, number: int, queue: str = "auto", kind: str = "work", left: float | None = None, model: ModelUse | None = None
    ) -> None:
        self.key = QueueKey(0.0, number)
        self.task_id = f"task_{number}"
        self.queue = queue
        self.kind = ("call", kind, None)
        self.model = model
        self.time_left = lambda: left
        self.elapsed = lambda: 0.0


def waiting(*arguments: Any, **more: Any) -> Entry:
    return cast("Entry", Waiting(*arguments, **more))


def test_start_is_estimated_over_two_lanes() -> None:
    first, second = gpu_lane(0), gpu_lane(1)
    lanes = joined(first, second)
    for lane in (first, second):
        lane.durations.add(("call", "work", None), 100.0)
    lanes.begin(first, waiting(0, left=30.0))
    lanes.begin(second, waiting(1, left=500.0))
    entries = [waiting(10), waiting(11, "device_1"), waiting(12), waiting(13, "device_1"), waiting(14, "device_0")]
    for entry in entries:
        lanes.place(entry.queue).add(entry)
    now = time.time()
    starts = [(lanes.estimate(entry) or 0.0) - now for entry in entries]
    assert starts == [pytest.approx(seconds, abs=5) for seconds in (30, 500, 130, 600, 230)]
    assert [lanes.position(entry) for entry in entries] == [1, 2, 2, 4, 3]
    unknown = waiting(15, kind="new")
    lanes.place("auto").add(unknown)
    lanes.place("auto").add(after := waiting(16))
    assert lanes.estimate(unknown) is not None
    assert lanes.estimate(after) == pytest.approx(time.time() + 700, abs=5), "the other lane is free before the unknown task ends"
    second.waiting_for = "another runtime"
    assert lanes.estimate(after) is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["cpu"], {"auto": [0], "gpu": [0], "cpu": [0]}),
        (["gpu", "gpu", "cpu"], {"auto": [0, 1], "gpu": [0, 1], "cpu": [2]}),
        (["cpu", "gpu"], {"auto": [1], "gpu": [1], "cpu": [0]}),
    ],
)
def test_queues_are_served_by_the_devices_of_their_name(kinds: list[str], expected: dict[str, list[int]]) -> None:
    lanes = joined(*(gpu_lane(number, kind=kind) for number, kind in enumerate(kinds)))
    for name, numbers in expected.items():
        assert list(lanes.place(name).lanes) == [f"device_{number}" for number in numbers]


def test_cpu_serves_auto_and_not_gpu_after_the_last_gpu_left() -> None:
    lanes = joined(gpu_lane(0), gpu_lane(1, kind="cpu"))
    lanes.leave("device_0")
    assert (list(lanes.place("auto").lanes), list(lanes.place("gpu").lanes)) == (["device_1"], [])
    assert lanes.place("gpu").waiting_for == "a GPU, and none is available"
    lanes.join(gpu_lane(2))
    assert (list(lanes.place("auto").lanes), list(lanes.place("gpu").lanes)) == (["device_2"], ["device_2"])


def test_devices_of_one_memory_count_each_others_tasks() -> None:
    machine = Machine()
    reports = [DeviceReport("gpu", 0, "a GPU", None, ("metal", "unified_memory"), "0"), DeviceReport("cpu", 0, "a CPU", None, (), "0")]
    gpu, cpu = (Lane(f"device_{number}", report, 1, 30.0, cast("Any", None), machine) for number, report in enumerate(reports))
    lanes = joined(gpu, cpu)
    admission = Admission(cast("Any", SimpleNamespace(allocated=lambda task_id: 0)))
    large = waiting(1)
    large.needs = machine.total
    lanes.begin(gpu, large)
    assert admission.free(cpu) == 0
    lanes.place("cpu").add(waits := waiting(2, "cpu"))
    waits.blocked_since = time.monotonic()
    assert cpu.head_timed_out(0.0) is None, "the GPU's task will free memory"
    lanes.end(gpu, large)
    assert admission.free(cpu) > 0
    assert cpu.head_timed_out(0.0) is waits


def test_task_drains_one_lane_only() -> None:
    first, second = gpu_lane(0), gpu_lane(1)
    lanes = joined(first, second)
    large, small = waiting(1), waiting(2)
    for entry in (large, small):
        lanes.place("auto").add(entry)
    large.blocked_since = time.monotonic() - 60.0

    def fits(lane: Lane, entry: Entry) -> Blocked | None:
        return Blocked("memory") if entry is large else None

    assert first.take(fits) is None, "it drains for the large task"
    assert second.take(fits) is small
    lanes.place("auto").add(other := waiting(3))
    lanes.leave("device_0")
    assert second.take(fits) is None, "it drains now, because the other lane has left"
    assert other.waiting_for is None


def test_prompt_uses_the_device_that_has_its_model() -> None:
    first, second = gpu_lane(0), gpu_lane(1)
    lanes = joined(first, second)
    model = ModelUse(ModelSource("tiny", "/models/tiny", "mlx"), 300.0)
    admission = Admission(cast("Any", SimpleNamespace(models=SimpleNamespace(lanes=lambda model: ["device_1"]))))
    prompt = waiting(1, model=model)
    lanes.place("auto").add(prompt)
    assert "loaded on device_1" in (admission.blocked_reason(first, prompt) or ("",))[0]
    assert admission.blocked_reason(second, prompt) is None
    lanes.begin(second, answering := waiting(2, model=model))
    assert "answers task_2" in (admission.blocked_reason(first, prompt) or ("",))[0]
    lanes.end(second, answering)
    lanes.begin(second, waiting(3))
    assert admission.blocked_reason(first, prompt) is None, "its device runs another task: it is loaded a second time"


async def test_added_task_wakes_the_lane_that_may_start_it() -> None:
    lanes = joined(*(gpu_lane(number) for number in range(3)))
    slots = {lane.id: asyncio.create_task(lane.wait()) for lane in lanes}
    await asyncio.sleep(0)
    lanes.place("auto").add(waiting(1))
    await asyncio.sleep(0)
    assert [slot.done() for slot in slots.values()] == [True, False, False]
    # The first lane can't start it and waits again: the others look once each.
    for number, seen in ((0, [False, True, False]), (1, [False, False, True]), (2, [False, False, False])):
        lane = lanes.devices[f"device_{number}"]
        lane.pass_on()
        slots[lane.id] = asyncio.create_task(lane.wait(60.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [slot.done() for slot in slots.values()] == seen
    for lane in lanes:
        lane.wake()
    await asyncio.wait_for(asyncio.gather(*slots.values()), 5)


async def calls(lanes: int, pending: int) -> tuple[float, float]:
    """Return the number of function calls of a submission, and of a task from its queue to its end."""
    simulation = Simulation(lanes, 1, 500)
    simulation.join()
    for number in range(pending):
        simulation.scheduler.enqueue(simulation.entry(number))
    profile = cProfile.Profile()
    entries = [simulation.entry(pending + number) for number in range(100)]
    submissions = profile.runcall(lambda: [simulation.submit(entry) for entry in entries])
    submission = sum(entry.callcount for entry in profile.getstats()) / len(submissions)
    await asyncio.sleep(0)  # the slots begin
    await asyncio.sleep(0)
    profile = cProfile.Profile()
    profile.enable()
    await simulation.engine.done.wait()
    profile.disable()
    dispatch = sum(entry.callcount for entry in profile.getstats()) / 500
    await simulation.scheduler.stop()
    await simulation.scheduler.close(5.0)
    return submission, dispatch


async def test_cost_does_not_grow_with_lanes() -> None:
    few, many = await calls(2, 2000), await calls(1000, 100_000)
    assert many[0] <= 1.2 * few[0]
    assert many[1] <= 1.2 * few[1]
