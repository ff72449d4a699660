"""Planted events are found with their times and tasks, and missing data causes no findings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from openruntime_jupyter.ai.insights.finding import FindingDraft
from openruntime_jupyter.ai.insights.report import text_of
from openruntime_jupyter.schemas.base import timestamp
from openruntime_jupyter.schemas.insights import MetricType
from openruntime_jupyter.schemas.system import TIMEFRAMES, Timeframe
from openruntime_jupyter.schemas.tasks import FailureKind, TaskState
from tests.ai.insights.synthetic import CPU, GPU, Story, look, ordinary, planted
from tests.runtimes import live

METRICS: tuple[MetricType, ...] = ("performance", "memory", "efficiency", "errors")


def one(drafts: list[FindingDraft], kind: str, figure: str | None = "any") -> FindingDraft:
    found = [draft for draft in drafts if draft.kind == kind and figure in ("any", draft.figure)]
    assert len(found) == 1, [(draft.kind, draft.figure, draft.text) for draft in drafts]
    return found[0]


def told(story: Story, drafts: list[FindingDraft]) -> str:
    return text_of(story.timeframe, "performance", [draft.finding() for draft in drafts])


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_a_spike_a_leak_and_a_burst_are_each_named_with_their_time(tmp_path: Path, timeframe: Timeframe) -> None:
    story = planted(timeframe, time.time())
    dataset, (overall, memory, errors) = live(look(story, tmp_path, "performance", "memory", "errors"))
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
        assert burst.severity == "warning"


@pytest.mark.parametrize("timeframe", ["1h", "24h", "7d"])
def test_memory_of_the_workers_that_grows_is_a_leak_whoever_grows_it(tmp_path: Path, timeframe: Timeframe) -> None:
    story = planted(timeframe, time.time())
    story.tasks = [task for task in story.tasks if task.name != "grow"]
    _, (drafts,) = live(look(story, tmp_path, "memory"))
    leak = one(drafts, "leak", "worker_memory")
    assert leak.start == pytest.approx(story.at(0.5), abs=story.span * 0.05)
    assert leak.end == pytest.approx(story.at(0.9), abs=story.span * 0.05)
    assert leak.figures["to"] == pytest.approx(3.5e9, rel=0.1)


def test_a_leak_that_ended_with_its_worker_is_still_one(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    workers, begin, end = story.courses["worker_memory"], story.at(0.2), story.at(0.7)
    story.courses["worker_memory"] = lambda at: workers(at) + (3e9 * (at - begin) / (end - begin) if begin < at < end else 0.0)
    _, (drafts,) = live(look(story, tmp_path, "memory"))
    leak = one(drafts, "leak", "worker_memory")
    assert leak.end == pytest.approx(end, abs=story.span * 0.06)


def test_memory_that_fills_up_is_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    story = ordinary(Story("6h", time.time()))
    story.courses["memory_usage"] = lambda at: 40 + 30 * (at - story.begin) / story.span + story.dice.gauss(0, 0.5)
    _, (drafts,) = live(look(story, tmp_path, "memory"))
    trend = one(drafts, "trend", "memory_usage")
    assert trend.severity == "warning"
    assert trend.figures["seconds_until_90_percent"] == pytest.approx(4 * 3600, rel=0.1)
    assert "in 4" in trend.text or "in 3.9" in trend.text


def test_memory_that_was_as_high_before_is_not_said_to_fill_up(tmp_path: Path) -> None:
    story = ordinary(Story("6h", time.time(), spans=2.5))
    story.courses["memory_usage"] = lambda at: 40 + 30 * abs(at - story.begin) / story.span + story.dice.gauss(0, 0.5)
    _, (drafts,) = live(look(story, tmp_path, "memory"))
    trend = one(drafts, "trend", "memory_usage")
    assert trend.severity == "info"
    assert "earlier, too" in trend.text
    assert trend.advice is None


def test_a_spike_that_no_task_of_ours_made_is_said_to_be_so(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    memory, at = story.courses["memory_usage"], story.at(0.5)
    story.courses["memory_usage"] = lambda moment: 95.0 if at <= moment <= at + 60 else memory(moment)
    _, (drafts,) = live(look(story, tmp_path, "memory"))
    spike = one(drafts, "peak")
    assert spike.severity == "warning"
    assert "No recorded task was running: the cause is another program." in spike.text
    assert spike.tasks == []


def test_waiting_beside_an_idle_device_names_the_setting_with_its_value(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    story.courses |= {"pending_tasks": lambda at: 3.0, "active_tasks": lambda at: 2.0, "cpu_utilization": story.noise(20, 2)}
    for number in range(60):
        story.task(story.at((number + 1) / 62), 1.0, waited=12.0 if number else 30.0)
    _, (drafts, overall) = live(look(story, tmp_path, "efficiency", "performance"))
    for found in (drafts, overall):
        underused, queueing = one(found, "underused"), one(found, "queueing")
        assert underused.figures["utilization_mean"] == pytest.approx(20, abs=1)
        assert "OpenRuntimeApp.cpu_slots (now 2)" in (underused.advice or "")
        assert queueing.figures["wait_median_s"] == pytest.approx(12, abs=0.01)
        assert queueing.figures["wait_max_s"] == pytest.approx(30, abs=0.01)
        assert queueing.tasks[0].task_id == story.tasks[0].task_id


def test_work_that_got_slower_is_compared_with_the_same_work_alone(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(40):
        before = story.begin - 3600 + number * 60
        story.task(before, story.dice.uniform(0.9, 1.1), "matrix_multiply", parameters={"size": 100})
        story.task(story.begin + 60 + number * 60, story.dice.uniform(2.7, 3.3), "matrix_multiply", parameters={"size": 100})
        story.task(before, 0.1, "compute", parameters={"expression": "a"})
        story.task(story.begin + 60 + number * 60, 5.0, "compute", parameters={"expression": "b"})
    _, (drafts,) = live(look(story, tmp_path, "performance"))
    slower = one(drafts, "slower")
    assert "`matrix_multiply`" in slower.text
    assert slower.figures["ratio"] == pytest.approx(3, rel=0.1)


def test_why_tasks_failed_and_what_that_cost_is_told(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(50):
        kind = FailureKind.WORKER_DIED if number % 10 == 3 else None
        end = story.at((number + 1) / 52)
        if kind:
            story.failing(end, "python", kind, "killed by signal 9, peak 21.3 GB")
        else:
            story.task(end, 20.0, state=TaskState.TIMED_OUT if number % 10 == 7 else TaskState.COMPLETED)
    _, (errors, memory, efficiency) = live(look(story, tmp_path, "errors", "memory", "efficiency"))
    failures = one(errors, "failures")
    assert (failures.figures["failures"], failures.figures["percent"]) == (10, 20)
    assert failures.figures["worker_died_failures"] == 5
    assert one(memory, "failures").figures["failures"] == 5
    assert "`retries`" in (one(memory, "failures").advice or "")
    assert one(efficiency, "wasted").figures["wasted_s"] == pytest.approx(102.5)


def test_many_tasks_that_are_over_at_once_are_advised_to_come_together(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    for number in range(250):
        story.task(story.at((number + 1) / 252), 0.002)
    _, (drafts,) = live(look(story, tmp_path, "efficiency"))
    short = one(drafts, "short_tasks")
    assert short.figures["tasks"] == 250
    assert "POST /tasks/batch" in (short.advice or "")


def test_without_a_gpu_its_zero_is_not_taken_for_idleness(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    _, found = live(look(story, tmp_path, *METRICS, devices=(CPU,)))
    assert "his machine has no GPU" in told(story, found[0])
    assert not any("GPU utilization" in draft.text for drafts in found for draft in drafts)


def test_a_gpu_that_can_not_be_read_is_not_judged(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    del story.courses["gpu_utilization"]
    _, found = live(look(story, tmp_path, *METRICS, devices=(GPU,)))
    assert "is not available" in told(story, found[0])
    assert one(found[0], "levels").figures["gpu_utilization_mean"] is None
    assert not any(draft.figure == "gpu_utilization" for drafts in found for draft in drafts)


def test_a_gpu_that_is_busy_is_called_healthy_and_a_device_gives_its_own_advice(tmp_path: Path) -> None:
    story = ordinary(Story("15m", time.time()))
    story.courses["gpu_utilization"] = story.noise(75, 3)
    device = GPU.model_copy(update={"advice": "Install libopenblas."})
    _, (drafts,) = live(look(story, tmp_path, "performance", devices=(device,)))
    assert "GPU utilization averaged 75% (" in one(drafts, "levels").text
    assert "healthy" in one(drafts, "levels").text
    assert one(drafts, "device").advice == "Install libopenblas."


@pytest.mark.parametrize("timeframe", TIMEFRAMES)
def test_with_next_to_no_history_it_says_how_much_there_is_and_what_is_needed(tmp_path: Path, timeframe: Timeframe) -> None:
    story = ordinary(Story(timeframe, time.time(), spans=0.008))
    story.failing(story.now - 1)
    dataset, found = live(look(story, tmp_path, *METRICS))
    for drafts in found:
        little = one(drafts, "too_little")
        assert little.figures["values"] == dataset.columns.observed < 20
        assert "20 are needed" in little.text
        assert {draft.kind for draft in drafts} <= {"too_little", "levels", "failures", "largest"}
    assert "1 of 1 tasks" in told(story, found[3]), "a failure needs no statistics"


def test_no_history_at_all_is_told_as_such(tmp_path: Path) -> None:
    for drafts in live(look(Story("1h", time.time()), tmp_path, *METRICS))[1]:
        assert "0 values" in one(drafts, "too_little").text
        assert one(drafts, "levels")


def test_of_very_many_tasks_an_even_part_is_looked_at_and_counts_are_right_about(tmp_path: Path) -> None:
    story = ordinary(Story("1h", time.time()))
    for number in range(6000):
        operation = "compute" if number % 2 else "python"
        if number == 3000:
            for extra in range(10):
                story.failing(story.at(0.5) + extra, "call")
        story.task(story.at((number + 1) / 6002), 0.2, operation)
    dataset, (drafts,) = live(look(story, tmp_path, "errors"))
    assert dataset.ended.number == 6010
    assert 2500 < len(dataset.ended.tasks) < 3500
    assert dataset.ended.weight * len(dataset.ended.tasks) == pytest.approx(6010)
    share = sum(task.operation == "compute" for task in dataset.ended.tasks) / len(dataset.ended.tasks)
    assert share == pytest.approx(0.5, abs=0.02), "the sampling must not follow a pattern of every second task"
    assert one(drafts, "levels").figures["failed_tasks"] == 10
    assert one(drafts, "burst").figures["failures"] == 10, "none of the failures is lost"
