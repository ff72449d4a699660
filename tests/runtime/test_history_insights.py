"""History queries for insights, compared with the recorded tasks."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openruntime_jupyter.runtime.storage import insights as questions
from openruntime_jupyter.schemas.base import iso
from openruntime_jupyter.schemas.tasks import Failure, FailureKind, PerformanceMetrics, Task, TaskState
from tests.runtime.history_support import execute, make_task, moved, opened
from tests.runtimes import live

NOW = time.time()


def ended(start: float, end: float, state: TaskState = TaskState.COMPLETED, **fields: Any) -> Task:
    """Return a task that ran from `start` to `end`, in seconds from NOW, submitted a second before."""
    task = make_task(seconds=NOW + start - 1, attempt=1, **fields)
    return moved(
        task, state, timestamp=iso(NOW + end), started_at=iso(NOW + start), finished_at=iso(NOW + end), execution_time=float(end - start)
    )


async def ask(folder: Path, tasks: list[Task], question: Any, *more: Any) -> Any:
    async with opened(folder) as history:
        await history.commit_all(tasks)
        return await history.look(partial(question, **(more[0] if more else {})))


async def test_row_has_recorded_fields(tmp_path: Path) -> None:
    failure = Failure(kind=FailureKind.WORKER_DIED, message="killed " * 100)
    task = ended(-50, -40, TaskState.FAILED, operation="python", owner="alice", name="x").model_copy(
        update={
            "failure": failure,
            "error": failure.message,
            "device_used": "device_1",
            "performance_metrics": PerformanceMetrics(memory_used_mb=1.5, peak_memory_mb=2.5),
        }
    )
    found = await ask(tmp_path, [task], questions.ended, {"begin": NOW - 60, "end": NOW})
    (row,) = found.tasks
    assert found.failures == [row]
    assert (found.number, found.weight) == (1, 1)
    assert (row.task_id, row.operation, row.owner, row.name, row.state) == (task.task_id, "python", "alice", "x", "failed")
    assert (row.started, row.finished, row.waited) == (pytest.approx(NOW - 50), pytest.approx(NOW - 40), pytest.approx(1))
    assert (row.seconds, row.device, row.kind) == (10, "device_1", "worker_died")
    assert (row.mlx_memory, row.peak_memory) == (1.5e6, 2.5e6)
    assert row.error is not None
    assert len(row.error) == questions.LONGEST_ERROR


async def test_unknown_fields_are_none(tmp_path: Path) -> None:
    task = moved(make_task(seconds=NOW - 10), TaskState.CANCELLED, timestamp=iso(NOW - 5))
    (row,) = (await ask(tmp_path, [task], questions.ended, {"begin": NOW - 60, "end": NOW})).tasks
    assert (row.started, row.waited, row.seconds, row.device, row.kind, row.mlx_memory, row.peak_memory) == (None,) * 7


async def test_only_tasks_that_ended_within_range_are_returned(tmp_path: Path) -> None:
    tasks = [ended(-200, -150), ended(-150, -90), ended(-80, -70), ended(-20, -0.5), make_task()]
    found = await ask(tmp_path, tasks, questions.ended, {"begin": NOW - 100, "end": NOW - 10})
    assert [task.task_id for task in found.tasks] == [tasks[1].task_id, tasks[2].task_id]


async def test_around_returns_tasks_that_ran_then(tmp_path: Path) -> None:
    before, within, across, after = ended(-300, -200), ended(-150, -120), ended(-400, -10), ended(-50, -40)
    runs = moved(make_task(seconds=NOW - 500), TaskState.RUNNING, started_at=iso(NOW - 450))
    waits = make_task(seconds=NOW - 500)
    found = await ask(tmp_path, [before, within, across, after, runs, waits], questions.around, {"begin": NOW - 160, "end": NOW - 100})
    assert {task.task_id for task in found} == {within.task_id, across.task_id, runs.task_id}


async def test_damaged_record_only_loses_its_own_fields(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        await history.commit_all([ended(-50, -40), ended(-30, -20)])
        await execute(history, "UPDATE tasks SET document = 'NaN{' WHERE sequence = 1")
        first, second = (await history.look(partial(questions.ended, begin=NOW - 60, end=NOW))).tasks
    assert (first.operation, first.seconds) == ("compute", None)
    assert second.seconds == 10


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 8,000 tasks, every second one of one operation, 15 of them failed."""
    folder = tmp_path_factory.mktemp("many")

    states = [TaskState.FAILED if number % 600 == 7 else TaskState.COMPLETED for number in range(8000)]
    tasks = [ended(-8100 + number, -8099 + number, state, operation="ba"[number % 2]) for number, state in enumerate(states)]
    live(ask(folder, tasks, questions.running))
    return folder


async def test_many_tasks_are_sampled_evenly_with_all_failures(many: Path) -> None:
    found = await ask(many, [], questions.ended, {"begin": NOW - 9000, "end": NOW})
    assert found.number == 8000
    assert 0.9 * questions.MOST_TASKS < len(found.tasks) < 1.1 * questions.MOST_TASKS
    assert found.weight * len(found.tasks) == pytest.approx(8000)
    assert len(found.failures) == 14
    assert sum(task.operation == "a" for task in found.tasks) / len(found.tasks) == pytest.approx(0.5, abs=0.02)
    # Each tenth of the range has a tenth of the samples.
    for tenth in range(10):
        begin = NOW - 8100 + tenth * 800
        assert sum(begin <= (task.finished or 0) < begin + 800 for task in found.tasks) == pytest.approx(len(found.tasks) / 10, rel=0.05)


async def test_around_reads_a_bounded_number_of_tasks(many: Path) -> None:
    found = await ask(many, [], questions.around, {"begin": NOW - 8000, "end": NOW - 1000})
    assert 100 < len(found) <= 4 * questions.MOST_AROUND


async def test_durations_are_grouped_by_name_and_parameters(tmp_path: Path) -> None:
    tasks = [ended(-10 - number, -9, operation="a", parameters={"size": number % 2}) for number in range(6)]
    tasks += [ended(-5, -4, operation="a", name="other", parameters={"size": 0}), ended(-5, -4, operation="b", parameters={"size": 0})]
    tasks += [ended(-5, -4, TaskState.FAILED, operation="a", parameters={"size": 0})]
    arguments = {"operation": "a", "begin": NOW - 60, "end": NOW, "most": 100}
    found = await ask(tmp_path, tasks, questions.durations, arguments)
    assert sorted(found.values()) == [[1.0], [1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    found = await ask(tmp_path, [], questions.durations, {**arguments, "most": 2})
    assert sum(map(len, found.values())) == 2


async def test_durations_read_bounded_parameter_bytes(tmp_path: Path) -> None:
    size = questions.PARAMETER_BYTES // 3
    tasks = [ended(-10 - number, -9, operation="a", parameters={"text": "x" * size}) for number in range(8)]
    found = await ask(tmp_path, tasks, questions.durations, {"operation": "a", "begin": NOW - 60, "end": NOW, "most": 100})
    assert [len(times) for times in found.values()] == [3]
