"""Planted events are found with their times and tasks; healthy histories and missing data cause no alarms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openruntime_jupyter.ai.insights.dataset import EARLIER
from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.report import text_of
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.insights import MetricType
from openruntime_jupyter.schemas.system import Device, Timeframe
from openruntime_jupyter.schemas.tasks import FailureKind, TaskState
from tests.ai.insights.synthetic import CPU, DAY, GPU, Story, look, ordinary, planted

METRICS: tuple[MetricType, ...] = ("performance", "memory", "efficiency", "errors")


def one(drafts: list[FindingDraft], kind: str, figure: str | None = "any") -> FindingDraft:
    found = [draft for draft in drafts if draft.kind == kind and figure in ("any", draft.figure)]
    assert len(found) == 1, [(draft.kind, draft.figure, draft.text) for draft in drafts]
    return found[0]


@pytest.mark.parametrize("timeframe", ["5m", "7d"])
async def test_spike_leak_and_burst_have_times_and_tasks(tmp_path: Path, timeframe: Timeframe) -> None:
    story = planted(timeframe, time.time())
    dataset, (overall, memory, errors) = await look(story, tmp_path, "performance", "memory", "errors")
    step = dataset.columns.step

    for drafts in (overall, memory):
        spike = one(drafts, "peak", "memory_usage")
        assert spike.figures["peak"] == pytest.approx(78, abs=0.1)
        assert spike.at is not None
        assert story.at(0.4) - 2 * step <= spike.at <= story.at(0.4) + max(30.0, story.span / 300)
        assert timestamp(spike.at)[11:16] in spike.text
        assert (spike.tasks[0].name, spike.tasks[0].owner) == ("train", "alice")
        assert spike.tasks[0].task_id in spike.text

        leak = one(drafts, "leak", None)
        assert "`python`" in leak.text
        assert leak.figures["bytes_per_task"] == pytest.approx(2.5e7, rel=0.2)
        assert leak.start == pytest.approx(story.at(0.5), abs=story.span * 0.06)
        assert leak.end == pytest.approx(story.at(0.9), abs=story.span * 0.06)
        assert {task.name for task in leak.tasks} == {"grow"}

    for drafts in (overall, errors):
        burst = one(drafts, "burst")
        assert burst.start == pytest.approx(story.at(0.7), abs=1)
        assert burst.end == pytest.approx(story.at(0.7) + 11 * story.span / 3600, abs=1)
        assert timestamp(burst.start)[11:19] in burst.text
        assert timestamp(burst.end)[11:19] in burst.text
        assert burst.figures["failures"] == 12
        assert "`matrix_multiply`" in burst.text
        assert "bad shape" in burst.text
        assert burst.advice is not None
        assert burst.tasks[-1].task_id in burst.advice, "no placeholder"
        assert not [draft.advice for draft in drafts if "{" in (draft.advice or "")]
        assert burst.severity == "warning"


async def test_growing_worker_memory_is_a_leak(tmp_path: Path) -> None:
    story = planted("24h", time.time())
    story.tasks = [task for task in story.tasks if task.name != "grow"]
    _, (drafts,) = await look(story, tmp_path, "memory")
    leak = one(drafts, "leak", "worker_memory")
    assert leak.start == pytest.approx(story.at(0.5), abs=story.span * 0.05)
    assert leak.end == pytest.approx(story.at(0.9), abs=story.span * 0.05)
    assert leak.figures["to"] == pytest.approx(3.5e9, rel=0.1)


async def test_rising_memory_has_a_forecast(tmp_path: Path) -> None:
    story = ordinary(Story("6h", time.time()))
    story.courses["memory_usage"] = lambda at: 40 + 30 * (at - story.begin) / story.span + story.dice.gauss(0, 0.5)
    _, (drafts,) = await look(story, tmp_path, "memory")
    trend = one(drafts, "trend", "memory_usage")
    assert trend.severity == "warning"
    assert trend.figures["seconds_until_90_percent"] == pytest.approx(4 * 3600, rel=0.1)
    assert "in 4" in trend.text or "in 3.9" in trend.text


async def test_spike_without_tasks_names_another_program(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    memory, at = story.courses["memory_usage"], story.at(0.5)
    story.courses["memory_usage"] = lambda moment: 95.0 if at <= moment <= at + 60 else memory(moment)
    _, (drafts,) = await look(story, tmp_path, "memory")
    spike = one(drafts, "peak")
    assert spike.severity == "warning"
    assert "No recorded task was running: the cause is another program." in spike.text
    assert spike.tasks == []


async def test_queueing_on_idle_device_names_setting_and_value(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    story.courses |= {"pending_tasks": lambda at: 3.0, "active_tasks": lambda at: 2.0, "cpu_utilization": story.noise(20, 2)}
    for number in range(60):
        story.task(story.at((number + 1) / 62), 1.0, waited=12.0 if number else 30.0)
    _, (drafts, overall) = await look(story, tmp_path, "efficiency", "performance")
    for found in (drafts, overall):
        underused, queueing = one(found, "underused"), one(found, "queueing")
        assert underused.figures["utilization_mean"] == pytest.approx(20, abs=1)
        assert "OpenRuntimeApp.cpu_slots (now 2)" in (underused.advice or "")
        assert queueing.figures["wait_median_s"] == pytest.approx(12, abs=0.01)
        assert queueing.figures["wait_max_s"] == pytest.approx(30, abs=0.01)
        assert queueing.tasks[0].task_id == story.tasks[0].task_id


async def test_slower_compares_only_similar_tasks(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(40):
        before = story.begin - 3600 + number * 60
        story.task(before, story.dice.uniform(0.9, 1.1), "matrix_multiply", parameters={"size": 100})
        story.task(story.begin + 60 + number * 60, story.dice.uniform(2.7, 3.3), "matrix_multiply", parameters={"size": 100})
        story.task(before, 0.1, "compute", parameters={"expression": "a"})
        story.task(story.begin + 60 + number * 60, 5.0, "compute", parameters={"expression": "b"})
    _, (drafts,) = await look(story, tmp_path, "performance")
    slower = one(drafts, "slower")
    assert "`matrix_multiply`" in slower.text
    assert slower.figures["ratio"] == pytest.approx(3, rel=0.1)


async def test_failures_have_kinds_and_wasted_time(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(50):
        kind = FailureKind.WORKER_DIED if number % 10 == 3 else None
        end = story.at((number + 1) / 52)
        if kind:
            story.failing(end, "python", kind, "killed by signal 9, peak 21.3 GB")
        else:
            story.task(end, 20.0, state=TaskState.TIMED_OUT if number % 10 == 7 else TaskState.COMPLETED)
    _, (errors, memory, efficiency) = await look(story, tmp_path, "errors", "memory", "efficiency")
    failures = one(errors, "failures")
    assert (failures.figures["failures"], failures.figures["percent"]) == (10, 20)
    assert failures.figures["worker_died_failures"] == 5
    assert one(memory, "failures").figures["failures"] == 5
    assert "`retries`" in (one(memory, "failures").advice or "")
    assert one(efficiency, "wasted").figures["wasted_s"] == pytest.approx(102.5)


async def test_many_short_tasks_are_advised_to_use_batches(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    for number in range(250):
        story.task(story.at((number + 1) / 252), 0.002)
    _, (drafts,) = await look(story, tmp_path, "efficiency")
    short = one(drafts, "short_tasks")
    assert short.figures["tasks"] == 250
    assert "POST /tasks/batch" in (short.advice or "")


@pytest.mark.parametrize(("device", "text"), [(CPU, "his machine has no GPU"), (GPU, "is not available")])
async def test_unknown_gpu_utilization_is_not_assessed(tmp_path: Path, device: Device, text: str) -> None:
    story = ordinary(Story("15m", time.time()))
    if device is GPU:
        del story.courses["gpu_utilization"]
    _, found = await look(story, tmp_path, *METRICS, devices=(device,))
    assert text in text_of("15m", "performance", [draft.finding() for draft in found[0]])
    assert not any("GPU utilization" in draft.text or draft.figure == "gpu_utilization" for drafts in found for draft in drafts)


async def test_busy_gpu_is_healthy_and_device_advice_is_reported(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    story.courses["gpu_utilization"] = story.noise(75, 3)
    device = GPU.model_copy(update={"advice": "Install libopenblas."})
    _, (drafts,) = await look(story, tmp_path, "performance", devices=(device,))
    assert "GPU utilization averaged 75% (" in one(drafts, "levels").text
    assert "healthy" in one(drafts, "levels").text
    assert one(drafts, "device").advice == "Install libopenblas."


@pytest.mark.parametrize(("timeframe", "spans"), [("6h", 0.008), ("1h", 0.0)])
async def test_short_history_reports_available_and_required_amount(tmp_path: Path, timeframe: Timeframe, spans: float) -> None:
    story = ordinary(Story(timeframe, time.time(), spans=spans))
    story.failing(story.now - 1)
    dataset, found = await look(story, tmp_path, *METRICS)
    for drafts in found:
        little = one(drafts, "too_little")
        assert little.figures["values"] == dataset.columns.observed < 20
        assert "20 are needed" in little.text
        assert {draft.kind for draft in drafts} <= {"too_little", "levels", "failures", "largest"}
    assert "1 of 1 tasks" in one(found[3], "failures").text, "a failure needs no statistics"


async def test_many_tasks_are_sampled_evenly(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(6000):
        operation = "compute" if number % 2 else "python"
        if number == 3000:
            for extra in range(10):
                story.failing(story.at(0.5) + extra, "call")
        story.task(story.at((number + 1) / 6002), 0.2, operation)
    dataset, (drafts,) = await look(story, tmp_path, "errors")
    assert dataset.ended.number == 6010
    assert 2500 < len(dataset.ended.tasks) < 3500
    assert dataset.ended.weight * len(dataset.ended.tasks) == pytest.approx(6010)
    share = sum(task.operation == "compute" for task in dataset.ended.tasks) / len(dataset.ended.tasks)
    assert share == pytest.approx(0.5, abs=0.02), "the sampling must not follow a pattern of every second task"
    assert one(drafts, "levels").figures["failed_tasks"] == 10
    assert one(drafts, "burst").figures["failures"] == 10, "none of the failures is lost"


def flat(story: Story) -> None:
    levels = {"memory_usage": 40.0, "cpu_utilization": 5.0, "worker_memory": 1e9}
    levels |= dict.fromkeys(("gpu_utilization", "active_tasks", "pending_tasks"), 0.0)
    story.courses = {name: lambda at, level=level: level for name, level in levels.items()}  # type: ignore[misc]


def noisy(story: Story) -> None:
    story.work(story.span / 300, 0.3, peak=3e8)


def failing_now_and_then(story: Story) -> None:
    story.work(story.span / 300, 0.3, failing=0.04)


def wandering(story: Story) -> None:
    def walk(level: float, deviation: float) -> Callable[[float], float]:
        place = [level]

        def step(_: float) -> float:
            place[0] = max(0.0, place[0] + story.dice.gauss(0, deviation))
            return place[0]

        return step

    story.courses |= {"memory_usage": walk(40, 0.1), "worker_memory": walk(1.5e9, 1e7)}


def daily(story: Story) -> None:
    story.spans = 1.0 + EARLIER[story.timeframe]
    story.courses |= {
        "memory_usage": story.daily(40, 15, 1),
        "cpu_utilization": story.daily(40, 30, 5),
        "worker_memory": story.daily(1.5e9, 1e9, 3e7),
        "active_tasks": story.daily(1, 0.8, 0.1),
    }


@pytest.mark.parametrize(
    ("course", "timeframe"),
    [(flat, "1h"), (noisy, "5m"), (failing_now_and_then, "7d"), (wandering, "5m"), (wandering, "7d"), (daily, "1h"), (daily, "7d")],
)
async def test_healthy_history_has_no_alarms(tmp_path: Path, course: Callable[[Story], None], timeframe: Timeframe) -> None:
    story = ordinary(Story(timeframe, time.time()))
    course(story)
    _, found = await look(story, tmp_path, *METRICS)
    for drafts in found:
        alarms = [draft.text for draft in drafts if draft.severity != "info" or draft.kind in ("peak", "leak", "burst")]
        # Failures are reported without further conclusions.
        assert not [text for text in alarms if course is not failing_now_and_then or "did not complete" not in text]
    if course is not failing_now_and_then:
        assert "nothing" in {draft.kind for draft in found[0]}


async def test_daily_rise_has_no_forecast(tmp_path: Path) -> None:
    now = time.time()
    story = ordinary(Story("6h", now, spans=1.0 + EARLIER["6h"]))
    story.courses["memory_usage"] = lambda at: 40 + 15 * math.sin(2 * math.pi * (at - now) / DAY + 1.0) + story.dice.gauss(0, 1)
    _, [drafts] = await look(story, tmp_path, "memory")
    [rise] = [draft for draft in drafts if draft.kind == "trend"]
    assert rise.severity == "info"
    assert "earlier, too" in rise.text
    assert rise.advice is None
